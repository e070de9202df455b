"""The first look at the sources, before Ray starts: the types of their files and their first rows.

Files of which no row can be used cost one line, not a cluster and a reject for every row.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NoReturn

from pipelines.core.errors import UserError
from pipelines.data.convert.row_error import RowError
from pipelines.data.read.chunks import Chunk, cut_chunks, line_of
from pipelines.data.read.raw_row import RawRow, printable
from pipelines.data.read.rows import read_chunk
from pipelines.data.source_rows import conversation_of
from pipelines.sources.source_files import SourceFile

NUM_ROWS = 20  # of a file
_NUM_FILES = 20  # of a source, whose rows are looked at; the types of all its files are


class RejectReasons:
    """The reasons why rows cannot be used; those that differ only in numbers are one."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._first: dict[str, str] = {}

    def add(self, reason: str, place: str) -> None:
        """Add a row, by its `file:line`."""
        kind = re.sub(r"\d+", "0", reason)
        self._counts[kind] += 1
        self._first.setdefault(kind, f"{printable(reason)} (first at {place})")

    def update(self, later: RejectReasons) -> None:
        """Add the rows of another file."""
        self._counts.update(later._counts)
        self._first = {**later._first, **self._first}

    @property
    def total(self) -> int:
        """The number of rows."""
        return self._counts.total()

    def counts(self) -> dict[str, int]:
        """Each reason with the place of its first row, and the number of its rows; most first."""
        return {self._first[kind]: count for kind, count in self._counts.most_common()}


def check_first_rows(files: Sequence[SourceFile], max_rejects_share: float) -> None:
    """Raise UserError for a file that cannot be read, and where none of the first rows has a use.

    That is where the first 20 rows of a file are rejected, or all rows of a source of short files,
    and for a source without rows. If `max_rejects_share` is 1, all rows may be rejected.
    """
    chunks: dict[tuple[int, str], list[Chunk]] = {}
    for chunk in cut_chunks(files):
        chunks.setdefault((chunk.source, chunk.path), []).append(chunk)
    may_reject_all = max_rejects_share >= 1
    for _, group in itertools.groupby(files, lambda file: file.source):
        of_source = list(group)
        reasons, num_rows = RejectReasons(), 0
        for file in of_source[:_NUM_FILES]:
            own, count = _first_rejects(file, chunks.get((file.source, file.path), []))
            if own.total == count == NUM_ROWS and not may_reject_all:
                _refuse(file.name, own)
            reasons.update(own)
            num_rows += count
        where = f"{of_source[0].key}={of_source[0].config.path}"
        if not num_rows and len(of_source) <= _NUM_FILES:
            raise UserError(f"{where}: no row in it")
        if num_rows and reasons.total == num_rows and not may_reject_all:
            _refuse(where, reasons)


def _first_rejects(file: SourceFile, chunks: Sequence[Chunk]) -> tuple[RejectReasons, int]:
    """Why some of a file's first rows cannot be used, and how many rows were looked at."""
    reasons, count = RejectReasons(), 0
    rows = ((chunk, raw) for chunk in chunks for raw in read_chunk(chunk))
    for chunk, raw in itertools.islice(rows, NUM_ROWS):
        count += 1
        try:
            conversation_of(raw, file.config, chunk.is_table)
        except RowError as error:
            reasons.add(str(error), place_of(chunk, raw))
    return reasons, count


def place_of(chunk: Chunk, raw: RawRow) -> str:
    """`file:line` of a row."""
    return f"{PurePosixPath(chunk.path).name}:{line_of(chunk, raw.number)}"


def _refuse(where: str, reasons: RejectReasons) -> NoReturn:
    first, *others = reasons.counts()
    more = f"; {len(others)} other reason{'s' if len(others) > 1 else ''}" if others else ""
    count = reasons.total
    rows = f"none of the first {count} rows can" if count > 1 else "its only row cannot"
    raise UserError(f"{where}: {rows} be used: {first}{more}")
