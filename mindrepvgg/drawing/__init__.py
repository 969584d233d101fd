"""Pictures in one style: every module takes plain arrays, numbers and names, and writes a picture or a page of them."""
