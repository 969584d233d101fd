"""The training recipe: one schema of keys, read from yaml files and the command line, checked before anything runs."""
