"""The rows of one chunk, read by our own readers: a bad line costs that line, never the file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.data.sources import Chunk, open_binary

MAX_LINE_BYTES = 8 << 20
_SHOWN_CHARS = 2000
_BOM = b"\xef\xbb\xbf"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


@dataclass(frozen=True)
class RawRow:
    """A row with its number: the line in the chunk, or the row where there are no lines, from 0. `error` says why it
    cannot be read; `text` is then what was found there.
    """

    number: int
    value: Any = None
    error: str | None = None
    text: str = ""


def read_chunk(chunk: Chunk) -> Iterator[RawRow]:
    """The rows of one chunk, readable or not, in order."""
    readers = {
        "jsonl": _read_lines,
        "json": _read_array,
        "csv": _read_csv,
        "parquet": _read_parquet,
        "arrow": _read_arrow,
    }
    return readers[chunk.kind](chunk)


def _read_lines(chunk: Chunk) -> Iterator[RawRow]:
    with open_binary(chunk.path) as stream:
        if chunk.first:
            # The line that runs into this chunk belongs to the one before, unless it ends exactly at the border.
            stream.seek(chunk.first - 1)
            position = chunk.first - 1 + len(stream.readline())
        else:
            position = 0
        number = 0
        while position < chunk.last and (line := stream.readline()):
            text = line if position else line.removeprefix(_BOM)
            position += len(line)
            if text.strip():
                yield _parsed(number, text)
            number += 1


def _parsed(number: int, line: bytes) -> RawRow:
    if len(line) > MAX_LINE_BYTES:
        return RawRow(number, error=f"a line of {len(line)} bytes, the limit is {MAX_LINE_BYTES}", text=_shown(line))
    try:
        return RawRow(number, _DECODER.decode(line.decode()))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte {line[error.start]:#04x} at column {error.start + 1}"
        return RawRow(number, error=reason, text=_shown(line))
    except (ValueError, RecursionError) as error:
        return RawRow(number, error=f"not JSON: {_first_line(error)}", text=_shown(line))


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _shown(line: bytes | str) -> str:
    return line[:_SHOWN_CHARS].decode(errors="backslashreplace") if isinstance(line, bytes) else line[:_SHOWN_CHARS]


def _read_array(chunk: Chunk) -> Iterator[RawRow]:
    """The elements of a JSON array. After a broken one, reading goes on at the next line that opens like the first."""
    with open_binary(chunk.path) as stream:
        text = stream.read().removeprefix(_BOM).decode(errors="surrogateescape")
    position = text.index("[") + 1
    line, counted = 0, 0
    opening: re.Pattern[str] | None = None
    while True:
        position = _skip(text, position)
        if position >= len(text) or text[position] == "]":
            return
        line += text.count("\n", counted, position)
        counted = position
        if opening is None:
            indent = text[text.rfind("\n", 0, position) + 1 : position]
            opening = (
                re.compile(rf"^{re.escape(indent)}\{{", re.MULTILINE) if not indent.strip() else re.compile(r"(?!)")
            )
        start = position
        try:
            value, position = _DECODER.raw_decode(text, position)
            yield RawRow(line, value)
        except (ValueError, RecursionError) as error:
            following = opening.search(text, start + 1)
            position = following.start() + len(following.group()) - 1 if following else len(text)
            yield RawRow(line, error=f"not JSON: {_first_line(error)}", text=_shown(text[start:position]))


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position


def _read_csv(chunk: Chunk) -> Iterator[RawRow]:
    with open_binary(chunk.path) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(lines, delimiter="\t" if chunk.path.lower().endswith(".tsv") else ",", strict=True)
        header = next(rows, [])
        while True:
            number = rows.line_num
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(number, error=f"not CSV: {error}")
                continue
            if len(row) != len(header):
                text = _shown(",".join(row))
                if row:
                    yield RawRow(number, error=f"{len(row)} fields, the header has {len(header)}", text=text)
                continue
            yield RawRow(number, dict(zip(header, row, strict=True)))


def _read_parquet(chunk: Chunk) -> Iterator[RawRow]:
    import pyarrow.parquet

    with open_binary(chunk.path) as stream:
        file = pyarrow.parquet.ParquetFile(stream)
        number = sum(file.metadata.row_group(g).num_rows for g in range(chunk.first))
        for batch in file.iter_batches(row_groups=list(range(chunk.first, chunk.last))):
            for row in batch.to_pylist():
                yield RawRow(number, row)
                number += 1


def _read_arrow(chunk: Chunk) -> Iterator[RawRow]:
    with open_binary(chunk.path) as stream:
        number = 0
        for i, batch in enumerate(_arrow_batches(stream)):
            if i >= chunk.last:
                return
            if i >= chunk.first:
                for offset, row in enumerate(batch.to_pylist()):
                    yield RawRow(number + offset, row)
            number += batch.num_rows


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
