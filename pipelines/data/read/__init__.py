"""Rows of source files, one reader a file type."""
