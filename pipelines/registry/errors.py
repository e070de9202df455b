"""Errors of the registry that a caller may want to handle."""

from __future__ import annotations

from pipelines.core.errors import RetryError, UserError


class EntryError(UserError):
    """A version or an alias does not exist, or its file is damaged; other entries are usable."""


class AliasMovedError(RetryError):
    """Somebody else moved the alias since it was read: read it again and decide again."""
