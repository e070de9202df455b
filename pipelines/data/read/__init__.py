"""Rows of source files, one reader per file type."""
