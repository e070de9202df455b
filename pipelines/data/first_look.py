"""The first look at the sources, before Ray starts: the types of their files and their first rows.

Files of which no row can be used cost one line, not a cluster and a reject for every row.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

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
        reasons, num_rows, num_rejects = RejectReasons(), 0, 0
        for file in of_source[:_NUM_FILES]:
            own, count = RejectReasons(), 0
            for chunk, raw in itertools.islice(
                _rows(chunks.get((file.source, file.path), [])), NUM_ROWS
            ):
                count += 1
                try:
                    conversation_of(raw, file.config, chunk.is_table)
                except RowError as error:
                    num_rejects += 1
                    for each in (own, reasons):
                        each.add(str(error), place_of(chunk, raw))
            num_rows += count
            if count == NUM_ROWS == sum(own.counts().values()) and not may_reject_all:
                _refuse(file.name, count, own)
        where = f"{of_source[0].key}={of_source[0].config.path}"
        if not num_rows and len(of_source) <= _NUM_FILES:
            raise UserError(f"{where}: no row in it")
        if num_rows and num_rejects == num_rows and not may_reject_all:
            _refuse(where, num_rows, reasons)


def place_of(chunk: Chunk, raw: RawRow) -> str:
    """`file:line` of a row."""
    return f"{PurePosixPath(chunk.path).name}:{line_of(chunk, raw.number)}"


def _rows(chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, RawRow]]:
    return ((chunk, raw) for chunk in chunks for raw in read_chunk(chunk))


def _refuse(where: str, num_rows: int, reasons: RejectReasons) -> None:
    first, *others = reasons.counts()
    more = f"; {len(others)} other reason{'s' if len(others) > 1 else ''}" if others else ""
    rows = f"none of the first {num_rows} rows can" if num_rows > 1 else "its only row cannot"
    raise UserError(f"{where}: {rows} be used: {first}{more}")
