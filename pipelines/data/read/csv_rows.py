"""The rows of a CSV file. A quote that is not closed costs its line, not the lines behind it."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from typing import IO

from pipelines.core.errors import UserError
from pipelines.data.read.csv_header import column_names, has_spaces, records, sep_of
from pipelines.data.read.raw_row import MAX_ROW_BYTES, RawRow, broken

_MARK = "\ufeff"  # the byte order mark


def read_csv(stream: IO[bytes], path: str, delimiter: str) -> Iterator[RawRow]:
    """The rows of a CSV file in UTF-8, numbered by their first line.

    Columns without a name are left out: the first is an index, others must be empty. Raises
    UserError for an invalid header.
    """
    csv.field_size_limit(MAX_ROW_BYTES)  # the module's own limit is 128 KiB a field
    lines = _Lines(
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    )
    header, is_spaced = _header(lines, delimiter, path)
    rows = records(lines, delimiter, is_spaced)
    names = column_names(header, path)
    unnamed = [i for i in range(1, len(header)) if not names[i : i + 1] or not names[i]]
    plain_width = len(header) if len(names) == len(header) and "" not in names else -1
    while True:
        lines.begin()
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            # Most often a quote is not closed: the record's other lines may be good rows.
            yield broken(lines.number, f"not CSV: {error}{lines.at_end()}", lines.give_back())
            rows = records(lines, delimiter, is_spaced)
            continue
        if len(row) == plain_width and row[0] and row[0] != header[0]:  # nearly all rows
            yield RawRow(lines.number, dict(zip(names, row, strict=False)))
        elif not any(row):
            continue  # a blank line, or one of the empty rows that Excel writes
        elif row == header:
            yield broken(lines.number, "the header again", "".join(lines.record))
        # Excel leaves out empty fields at the end of some rows.
        elif not len(names) <= len(row) <= len(header):
            reason = f"{len(row)} fields, the header has {len(header)}{lines.at_end()}"
            yield broken(lines.number, reason, "".join(lines.record))
        elif nameless := next((i for i in unnamed if i < len(row) and row[i].strip()), None):
            reason = f"field {nameless + 1} is not empty, but its column has no name"
            yield broken(lines.number, reason, "".join(lines.record))
        else:
            yield RawRow(lines.number, {name: row[i] for i, name in enumerate(names) if name})


def _header(lines: _Lines, delimiter: str, path: str) -> tuple[list[str], bool]:
    """The header, and whether spaces follow its delimiters."""
    rows = records(lines, delimiter)
    try:
        header = next(filter(None, rows), [])  # skips blank lines
        if sep_of("".join(lines.record).lstrip("\r\n")):
            lines.begin()
            header = next(filter(None, rows), [])
        is_spaced = has_spaces(header)
        return next(filter(None, records(lines.record, delimiter, is_spaced)), []), is_spaced
    except csv.Error as error:
        raise UserError(
            f"{path}: its first line is not a CSV header ({error}); fix the file"
        ) from error


class _Lines:
    """Iterates over a text's lines and can give back the lines of the current record.

    `record` has the lines of the current record, `number` counts the lines before it.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self._returned: deque[str] = deque()
        self.record: list[str] = []
        self.number = 0
        self._size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else self._read()
        if not line:
            raise StopIteration
        if line >= _MARK and line[0] == _MARK and not self.record:
            line = line[1:]  # files that were put together, each with its byte order mark
        self.record.append(line)
        self._size += len(line)
        if self._size > MAX_ROW_BYTES:
            raise csv.Error(f"more than {MAX_ROW_BYTES} characters in one row")
        return line

    def _read(self) -> str:
        """The next line; a line above the limit of a row is cut, but longer than the limit."""
        line = rest = self._stream.readline(MAX_ROW_BYTES + 1)
        while len(rest) > MAX_ROW_BYTES and not rest.endswith(("\n", "\r")):
            rest = self._stream.readline(MAX_ROW_BYTES + 1)
        return line

    def begin(self) -> None:
        """Begin a new record with the next line."""
        self.number += len(self.record)
        self.record, self._size = [], 0

    def at_end(self) -> str:
        """A note when the record's last line has no end, which a complete file has."""
        last = self.record[-1] if self.record else "\n"
        cut = not last.endswith(("\n", "\r")) and not self._returned
        return "; the file ends in this row: is it complete?" if cut else ""

    def give_back(self) -> str:
        """Return the record's first line; its other lines will be read again."""
        self._returned.extendleft(reversed(self.record[1:]))
        del self.record[1:]
        return self.record[0] if self.record else ""
