"""Tokenized source files in the store: when one of several files changes, only it is tokenized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from pipelines.data.read.chunks import Chunk
from pipelines.data.tokenized_table import SCHEMA
from pipelines.storage import Store

KIND = "tokenized"
_FILE = "rows.arrow"

Tables = Iterator[pa.Table]


def through_cache(
    store: Store,
    chunks: Sequence[Chunk],
    keys: Sequence[str],
    make: Callable[[Sequence[Chunk]], Tables],
) -> Tables:
    """The tables of all chunks in order, from the store where it has them.

    `keys[i]` is the key of chunk i's file. One call of `make` tokenizes the chunks of all files
    that the store lacks; their tables are stored. The `chunk` column of the yielded tables counts
    over all chunks; in the store and in `make` it begins at 0.
    """
    artifacts = {key: store.find(KIND, key) for key in dict.fromkeys(keys)}
    missing = [i for i, key in enumerate(keys) if artifacts[key] is None]
    made = _Lookahead(make([chunks[i] for i in missing]))
    first = 0
    while first < len(chunks):
        key = keys[first]
        count = next((i for i in range(first, len(keys)) if keys[i] != key), len(keys)) - first
        artifact = artifacts[key]
        if artifact is not None:
            tables = _read(store.local_dir(artifact.ref) / _FILE)
        else:
            tables = _stored(store, key, _of_file(made, missing.index(first), count))
        for table in tables:
            yield _renumbered(table, first)
        first += count


class _Lookahead:
    """An iterator of tables whose next table can be inspected in `next` before it is taken."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.next = next(tables, None)

    def take(self) -> pa.Table:
        table, self.next = self.next, next(self._tables, None)
        assert table is not None
        return table


def _of_file(made: _Lookahead, first: int, count: int) -> Tables:
    """The new tables of the chunks `first:first + count`, renumbered from 0."""
    while made.next is not None and (
        not len(made.next) or made.next["chunk"][0].as_py() < first + count
    ):
        table = made.take()
        if len(table):
            yield _renumbered(table, -first)


def _stored(store: Store, key: str, tables: Tables) -> Tables:
    """Yield the tables and write them into the store."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        store.create_artifact(KIND, key) as draft,
        pa.ipc.new_file(draft.path / _FILE, SCHEMA, options=options) as out,
    ):
        for table in tables:
            out.write_table(table)
            yield table


def _read(path: Path) -> Tables:
    with pa.OSFile(str(path)) as source:
        file = pa.ipc.open_file(source)
        for i in range(file.num_record_batches):
            yield pa.Table.from_batches([file.get_batch(i)])


def _renumbered(table: pa.Table, by: int) -> pa.Table:
    column = pa.array(table["chunk"].to_numpy() + by, pa.int32())
    return table.set_column(table.schema.get_field_index("chunk"), "chunk", column)
