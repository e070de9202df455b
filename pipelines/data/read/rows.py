"""The rows of one chunk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from typing import IO, Any

from pipelines.core.errors import UserError
from pipelines.data.read.chunks import Chunk
from pipelines.data.read.csv_rows import read_csv
from pipelines.data.read.json_rows import read_array, read_object, read_values
from pipelines.data.read.raw_row import MAX_ROW_BYTES, RawRow, broken, reason_of, strict_decoder
from pipelines.data.read.tables import arrow_batches, check_names, rows_of
from pipelines.data.read.utf8_stream import utf8_stream
from pipelines.sources.open import open_rows

_BOM = b"\xef\xbb\xbf"
_PART_ROWS = 1024


def read_chunk(chunk: Chunk) -> Generator[RawRow, None, int | None]:
    """The rows of one chunk, readable or not, in order.

    Returns the number of lines of a chunk of lines, None for other kinds. Raises UserError for a
    damaged table or compressed file, and for invalid JSON that is not written in lines.
    """
    of = chunk.type
    with open_rows(chunk.path, of.compressions) as stored:
        stream = utf8_stream(stored, of.encoding, chunk.path)
        if of.kind == "jsonl":
            return (yield from _read_lines(stream, chunk))
        elif of.kind == "array":
            yield from read_array(stream, chunk.path)
        elif of.kind == "values":
            yield from read_values(stream, chunk.path)
        elif of.kind == "object":
            yield from read_object(stream, chunk.path, of.field)
        elif of.kind == "csv":
            yield from read_csv(stream, chunk.path, of.delimiter)
        else:
            yield from _read_table(stream, chunk)
    return None


def _read_lines(stream: IO[bytes], chunk: Chunk) -> Generator[RawRow, None, int]:
    position = 0
    if chunk.first:
        # A line that begins before this chunk belongs to the previous one.
        stream.seek(chunk.first - 1)
        position = chunk.first - 1 + _line_end(stream, b"")
    number = 0
    decode = strict_decoder().decode
    while position < chunk.last and (line := stream.readline(MAX_ROW_BYTES + 1)):
        size = len(line) + (_line_end(stream, line) if len(line) > MAX_ROW_BYTES else 0)
        # Files that were put together have a mark in the middle.
        text = line.removeprefix(_BOM)
        position += size
        if size > MAX_ROW_BYTES:
            yield broken(number, f"a line of {size} bytes, the limit is {MAX_ROW_BYTES}", text)
        elif text.strip():
            yield _parsed(number, text, decode, chunk.type.encoding)
        number += 1
    return number


def _line_end(stream: IO[bytes], line: bytes) -> int:
    """Skip to the end of the line that begins with `line`; returns the number of skipped bytes."""
    size = 0
    while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
        size += len(line)
    return size


def _parsed(number: int, line: bytes, decode: Callable[[str], Any], encoding: str) -> RawRow:
    try:
        return RawRow(number, decode(line.decode()))
    except UnicodeDecodeError as error:
        byte, column = line[error.start], error.start + 1
        advice = "" if encoding != "utf-8" else "; is the source's `encoding` another?"
        reason = f"not {encoding.upper()}: byte {byte:#04x} at column {column}{advice}"
        return broken(number, reason, line)
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith(b"\n") else "; the file ends in this line: is it complete?"
        return broken(number, f"not JSON: {reason_of(error)}{cut}", line)


def _read_table(stream: IO[bytes], chunk: Chunk) -> Iterator[RawRow]:
    """Row groups `first:last` of a Parquet file, record batches `first:last` of an Arrow file."""
    try:
        for number, batch in _batches(stream, chunk):
            check_names(batch.schema, chunk.path)
            yield from _rows_of(batch, number)
    except UserError:
        raise
    except (ValueError, OSError) as error:  # faults of single rows are handled in _rows_of
        raise UserError(
            f"{chunk.path}: damaged ({reason_of(error)}); fix or replace the file"
        ) from error


def _batches(stream: IO[bytes], chunk: Chunk) -> Iterator[tuple[int, Any]]:
    """Batches, each with the number of its first row in the file."""
    import pyarrow.parquet

    number = 0
    if chunk.type.kind == "arrow":
        for i, batch in enumerate(itertools.islice(arrow_batches(stream), chunk.last)):
            if i >= chunk.first:
                batch.validate(full=True)  # wrong offsets of a damaged file would end the process
                yield number, batch
            number += batch.num_rows
        return
    file = pyarrow.parquet.ParquetFile(stream)
    number = sum(file.metadata.row_group(g).num_rows for g in range(chunk.first))
    for batch in file.iter_batches(row_groups=list(range(chunk.first, chunk.last))):
        yield number, batch
        number += batch.num_rows


def _rows_of(batch: Any, number: int) -> Iterator[RawRow]:
    """The rows of a batch, a part at a time: who reads the first rows need not wait for all."""
    for first in range(0, batch.num_rows, _PART_ROWS):
        part = batch.slice(first, _PART_ROWS)
        try:
            rows = rows_of(part)
        except (ValueError, OverflowError, RecursionError, KeyError):
            rows = None  # one value has no Python form: convert row by row to find it
        for i in range(part.num_rows):
            row = number + first + i
            try:
                value = rows[i] if rows is not None else rows_of(part.slice(i, 1))[0]
            except (ValueError, OverflowError, RecursionError, KeyError) as error:
                yield broken(row, f"a value cannot be read: {reason_of(error)}", "")
            else:
                yield RawRow(row, value)
