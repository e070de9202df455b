"""The note that a user reads when a store was written under an older schema."""

from __future__ import annotations

import contextlib
import json
from collections import Counter

from pipelines.core.errors import UserError
from pipelines.storage.folders import MANIFEST
from pipelines.storage.manifest_schema import OLDEST_READABLE, SCHEMA, is_readable
from pipelines.storage.store import Store

_MARKER = f".schema-{SCHEMA}"


def schema_note(store: Store) -> str | None:
    """One line naming what will be rebuilt, for the first command on a store of an older schema.

    Creates a hidden marker file, so that later commands get None without reading any manifest. In a
    read-only store, where the marker cannot be created, every command gets the line.
    """
    marker = f"{store.uri}/{_MARKER}"
    if not store.names("") or store.read_text(marker) is not None:
        return None
    counts = _count_unreadable(store)
    with contextlib.suppress(UserError):
        store.create_file(marker, "")
    if not counts:
        return None
    artifacts = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    readable = " and ".join(sorted(OLDEST_READABLE))
    return (
        f"{store.uri}: written by an older version; {readable} and aliases stay usable, other "
        f"artifacts ({artifacts}) are not found and are rebuilt when a command needs them"
    )


def _count_unreadable(store: Store) -> Counter[str]:
    """The number of artifacts that are no longer found, by the first folder of their kind."""
    counts: Counter[str] = Counter()
    for kind in store.names(""):
        for name in store.names(kind):
            if any(not is_readable(kind, schema) for schema in _schemas(store, f"{kind}/{name}")):
                counts[kind] += 1
    return counts


def _schemas(store: Store, folder: str) -> list[int]:
    """The schema of the artifact in a folder or, for a run's folder, of each of its checkpoints."""
    schema = _schema_of(store, folder)
    if schema is not None:
        return [schema]
    parts = (_schema_of(store, f"{folder}/{part}") for part in store.names(folder))
    return [schema for schema in parts if schema is not None]


def _schema_of(store: Store, folder: str) -> int | None:
    """The schema of the artifact in a folder; None when there is no manifest to read."""
    text = store.read_text(f"{store.uri}/{folder}/{MANIFEST}")
    try:
        return int(json.loads(text)["schema"]) if text else None
    except (ValueError, KeyError, TypeError):
        return None
