"""The rows of one chunk, read by our own readers: a bad line costs that line, never the file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import IO, Any

from pipelines.contracts import UserError
from pipelines.data.arrays import read_array
from pipelines.data.csv_rows import read_csv
from pipelines.data.raw import MAX_ROW_BYTES, RawRow, broken, strict_decoder, why
from pipelines.data.sources import Chunk, open_binary, open_rows

_BOM = b"\xef\xbb\xbf"


def read_chunk(chunk: Chunk) -> Iterator[RawRow]:
    """The rows of one chunk, readable or not, in order. Raises UserError when a table or a compressed file is damaged."""
    with open_rows(chunk.path) as stream:
        if chunk.kind == "jsonl":
            yield from _read_lines(stream, chunk)
        elif chunk.kind == "json":
            yield from read_array(stream)
        elif chunk.kind in ("csv", "tsv"):
            yield from read_csv(stream, chunk.path, "\t" if chunk.kind == "tsv" else ",")
        else:
            yield from _read_table(stream, chunk)


def _read_lines(stream: IO[bytes], chunk: Chunk) -> Iterator[RawRow]:
    position = 0
    if chunk.first:
        # The line that runs into this chunk belongs to the one before, unless it ends exactly at the border.
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
    """Read to the end of the line that `line` begins, without keeping it; the number of bytes that this took."""
    size = 0
    while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
        size += len(line)
    return size


def _parsed(number: int, line: bytes, decode: Callable[[str], Any]) -> RawRow:
    try:
        return RawRow(number, decode(line.decode()))
    except UnicodeDecodeError as error:
        return broken(number, f"not UTF-8: byte {line[error.start]:#04x} at column {error.start + 1}", line)
    except (ValueError, RecursionError) as error:
        return broken(number, f"not JSON: {why(error)}", line)


def _read_table(stream: IO[bytes], chunk: Chunk) -> Iterator[RawRow]:
    """Row groups `first:last` of a Parquet file, record batches `first:last` of an Arrow file."""
    try:
        for number, batch in _batches(stream, chunk):
            yield from _rows_of(batch, number)
    except (ValueError, OSError) as error:  # a row's own faults do not come this far
        raise UserError(f"{chunk.path}: damaged ({why(error)}); mend or replace the file") from error


def _batches(stream: IO[bytes], chunk: Chunk) -> Iterator[tuple[int, Any]]:
    """Batches with the number of the first row of each in the file."""
    import pyarrow.parquet

    number = 0
    if chunk.kind == "arrow":
        for i, batch in enumerate(itertools.islice(_arrow_batches(stream), chunk.last)):
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
        rows = None  # one value has no Python form: find out which
    for i in range(batch.num_rows):
        try:
            value = rows[i] if rows is not None else batch.slice(i, 1).to_pylist()[0]
        except (ValueError, OverflowError, RecursionError) as error:
            yield broken(number + i, f"a value cannot be read: {why(error)}", "")
        else:
            yield RawRow(number + i, value)


def _arrow_batches(stream: Any) -> Iterator[Any]:
    """Record batches of an Arrow file or, as the datasets library writes them, an Arrow stream."""
    import pyarrow as pa

    magic = stream.read(6)
    stream.seek(0)
    if magic == b"ARROW1":
        file = pa.ipc.open_file(stream)
        yield from (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        yield from pa.ipc.open_stream(stream)


def table_sizes(path: str, kind: str) -> list[int]:
    """Bytes of each row group of a Parquet file or each record batch of an Arrow file. Raises ValueError if it is none."""
    import pyarrow.parquet

    with open_binary(path) as stream:
        if kind == "arrow":
            return [batch.nbytes for batch in _arrow_batches(stream)]
        metadata = pyarrow.parquet.ParquetFile(stream).metadata
        return [metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups)]
