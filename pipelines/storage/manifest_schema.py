"""The schema version of manifests, and which older ones are still read."""

from __future__ import annotations

SCHEMA = 2
# The oldest schema of which artifacts of a kind are found; of any other kind only the present one.
OLDEST_READABLE = {"models": 1}


def is_readable(kind: str, schema: int) -> bool:
    """True if an artifact of this kind, written under this schema, is found."""
    return schema >= OLDEST_READABLE.get(kind, SCHEMA)
