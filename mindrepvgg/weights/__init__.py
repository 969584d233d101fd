"""Weights in files of every project and form: read without running anything in them, recognised, renamed, written."""
