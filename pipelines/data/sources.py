"""Source files cut into chunks that tasks can read apart, and the rows of one chunk. A bad line costs only that line."""

from __future__ import annotations

import difflib
import glob
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.contracts import UserError
from pipelines.recipe import SourceConfig

CHUNK_BYTES = 4 << 20
MAX_LINE_BYTES = 8 << 20
SUFFIXES = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; `source` is the number of the source in the recipe."""

    source: int
    path: str
    kind: str
    num_bytes: int


@dataclass(frozen=True)
class Chunk:
    """A part of a file: the lines that begin in `first:last` (bytes), or the row groups `first:last` of a Parquet file."""

    source: int
    path: str
    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class RawRow:
    """A row's number in its chunk (from 0) with its value, or with the reason why it cannot be read and its text."""

    number: int
    value: Any = None
    error: str | None = None
    text: str = ""


def find_files(sources: Sequence[SourceConfig]) -> list[SourceFile]:
    """Every file of the sources, each source's in the order of their names. Raises UserError naming the key and path."""
    files = []
    for number, source in enumerate(sources):
        for path in _paths(source.path, f"data.sources.{number}.path"):
            kind = SUFFIXES.get(path.suffix.lower())
            if kind is None:
                raise UserError(
                    f"data.sources.{number}.path={path}: unknown file type {path.suffix or '(none)'}; "
                    f"valid: {', '.join(SUFFIXES)}"
                )
            if kind == "json" and not _starts_array(path):
                kind = "jsonl"
            files.append(SourceFile(number, str(path), kind, path.stat().st_size))
    return files


def _paths(text: str, key: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"{key}={text}: the folder holds no file of a known type ({', '.join(SUFFIXES)})")
        return found
    if path.is_file():
        return [path]
    found = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
    if found:
        return found
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    hint = f"did you mean {path.parent / near[0]}?" if near else "set a file, a folder or a glob"
    raise UserError(f"{key}={text}: no such file; {hint}")


def _starts_array(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def cut_chunks(files: Sequence[SourceFile], chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
    """The files as chunks, in order; where they are cut changes nothing about the rows."""
    chunks = []
    for file in files:
        if file.kind == "jsonl":
            cuts = [*range(0, file.num_bytes, chunk_bytes), file.num_bytes]
        elif file.kind == "parquet":
            cuts = _row_group_cuts(file, chunk_bytes)
        else:
            cuts = [0, file.num_bytes]
        chunks += [Chunk(file.source, file.path, file.kind, a, b) for a, b in itertools.pairwise(cuts)]
    return chunks


def _row_group_cuts(file: SourceFile, chunk_bytes: int) -> list[int]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(file.path)
    except (pyarrow.lib.ArrowInvalid, OSError) as error:
        raise UserError(f"data.sources.{file.source}.path={file.path}: not a Parquet file ({error})") from error
    cuts, size = [0], 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= chunk_bytes:
            cuts.append(group + 1)
            size = 0
    return cuts if cuts[-1] == metadata.num_row_groups else [*cuts, metadata.num_row_groups]


def read_chunk(chunk: Chunk) -> Iterator[RawRow]:
    """The rows of one chunk, readable or not, in order."""
    if chunk.kind == "jsonl":
        return _read_lines(chunk)
    return _read_parquet(chunk) if chunk.kind == "parquet" else _read_array(chunk)


def _read_lines(chunk: Chunk) -> Iterator[RawRow]:
    with open(chunk.path, "rb") as stream:
        if chunk.first:
            # The line that runs into this chunk belongs to the one before, unless it ends exactly at the border.
            stream.seek(chunk.first - 1)
            stream.readline()
        number = 0
        while stream.tell() < chunk.last and (line := stream.readline()):
            if stream.tell() <= len(line):
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _parsed(number, line)
            number += 1


def _parsed(number: int, line: bytes) -> RawRow:
    if len(line) > MAX_LINE_BYTES:
        return RawRow(number, error=f"a line of {len(line)} bytes, the limit is {MAX_LINE_BYTES}", text=_shown(line))
    try:
        return RawRow(number, json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return RawRow(
            number, error=f"not UTF-8: byte {line[error.start]:#04x} at column {error.start + 1}", text=_shown(line)
        )
    except (ValueError, RecursionError) as error:
        return RawRow(number, error=f"not JSON: {error}", text=_shown(line))


def _shown(line: bytes) -> str:
    return line[:2000].decode(errors="backslashreplace")


def _read_array(chunk: Chunk) -> Iterator[RawRow]:
    text = Path(chunk.path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        rows = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        yield RawRow(0, error=f"not JSON: {error}", text=_shown(text))
        return
    for number, row in enumerate(rows):
        yield RawRow(number, row)


def _read_parquet(chunk: Chunk) -> Iterator[RawRow]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(chunk.path)
    number = 0
    for batch in file.iter_batches(row_groups=list(range(chunk.first, chunk.last))):
        for row in batch.to_pylist():
            yield RawRow(number, row)
            number += 1
