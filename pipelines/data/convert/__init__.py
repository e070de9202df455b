"""Rows to conversations, and which of them are kept."""
