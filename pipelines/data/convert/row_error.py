"""The error of one row."""

from __future__ import annotations


class RowError(ValueError):
    """One row cannot be used; the message is the reason that `rejects.jsonl` lists."""
