"""The rows of one chunk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import IO, Any

from pipelines.core.errors import UserError
from pipelines.data.read.chunks import Chunk
from pipelines.data.read.csv_rows import read_csv
from pipelines.data.read.json_array import read_array
from pipelines.data.read.raw_row import MAX_ROW_BYTES, RawRow, broken, reason_of, strict_decoder
from pipelines.data.read.tables import arrow_batches
from pipelines.sources.open import open_rows

_BOM = b"\xef\xbb\xbf"


def read_chunk(chunk: Chunk) -> Iterator[RawRow]:
    """The rows of one chunk, readable or not, in order.

    Raises UserError for a damaged table or compressed file, and for an invalid JSON array.
    """
    with open_rows(chunk.path) as stream:
        if chunk.kind == "jsonl":
            yield from _read_lines(stream, chunk)
        elif chunk.kind == "json":
            yield from read_array(stream, chunk.path)
        elif chunk.kind in ("csv", "tsv"):
            yield from read_csv(stream, chunk.path, "\t" if chunk.kind == "tsv" else ",")
        else:
            yield from _read_table(stream, chunk)


def _read_lines(stream: IO[bytes], chunk: Chunk) -> Iterator[RawRow]:
    position = 0
    if chunk.first:
        # A line that begins before this chunk belongs to the previous one.
        stream.seek(chunk.first - 1)
        position = chunk.first - 1 + _line_end(stream, b"")
    number = 0
    decode = strict_decoder().decode
    while position < chunk.last and (line := stream.readline(MAX_ROW_BYTES + 1)):
        size = len(line) + (_line_end(stream, line) if len(line) > MAX_ROW_BYTES else 0)
        text = line if position else line.removeprefix(_BOM)
        position += size
        if size > MAX_ROW_BYTES:
            yield broken(number, f"a line of {size} bytes, the limit is {MAX_ROW_BYTES}", text)
        elif text.strip():
            yield _parsed(number, text, decode)
        number += 1


def _line_end(stream: IO[bytes], line: bytes) -> int:
    """Skip to the end of the line that begins with `line`; returns the number of skipped bytes."""
    size = 0
    while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
        size += len(line)
    return size


def _parsed(number: int, line: bytes, decode: Callable[[str], Any]) -> RawRow:
    try:
        return RawRow(number, decode(line.decode()))
    except UnicodeDecodeError as error:
        return broken(
            number, f"not UTF-8: byte {line[error.start]:#04x} at column {error.start + 1}", line
        )
    except (ValueError, RecursionError) as error:
        return broken(number, f"not JSON: {reason_of(error)}", line)


def _read_table(stream: IO[bytes], chunk: Chunk) -> Iterator[RawRow]:
    """Row groups `first:last` of a Parquet file, record batches `first:last` of an Arrow file."""
    try:
        for number, batch in _batches(stream, chunk):
            yield from _rows_of(batch, number)
    except (ValueError, OSError) as error:  # faults of single rows are handled in _rows_of
        raise UserError(
            f"{chunk.path}: damaged ({reason_of(error)}); fix or replace the file"
        ) from error


def _batches(stream: IO[bytes], chunk: Chunk) -> Iterator[tuple[int, Any]]:
    """Batches, each with the number of its first row in the file."""
    import pyarrow.parquet

    number = 0
    if chunk.kind == "arrow":
        for i, batch in enumerate(itertools.islice(arrow_batches(stream), chunk.last)):
            if i >= chunk.first:
                yield number, batch
            number += batch.num_rows
        return
    file = pyarrow.parquet.ParquetFile(stream)
    number = sum(file.metadata.row_group(g).num_rows for g in range(chunk.first))
    for batch in file.iter_batches(row_groups=list(range(chunk.first, chunk.last))):
        yield number, batch
        number += batch.num_rows


def _rows_of(batch: Any, number: int) -> Iterator[RawRow]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, RecursionError):
        rows = None  # one value has no Python form: convert row by row to find it
    for i in range(batch.num_rows):
        try:
            value = rows[i] if rows is not None else batch.slice(i, 1).to_pylist()[0]
        except (ValueError, OverflowError, RecursionError) as error:
            yield broken(number + i, f"a value cannot be read: {reason_of(error)}", "")
        else:
            yield RawRow(number + i, value)
