"""Chunks of files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.core.errors import UserError
from pipelines.sources.files import SourceFile
from pipelines.sources.hub_datasets import (
    COMPRESSIONS,
)
from pipelines.sources.open import _one_line, open_binary

# Small inputs still make work for several tasks; large ones make tasks that outlast their scheduling.
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES, _USUAL_CHUNKS = 1 << 20, 16 << 20, 16


_TO_THE_END = 1 << 62  # how many bytes a compressed file holds shows only at its end


@dataclass(frozen=True)
class Chunk:
    """A part of a file: lines that begin in `first:last` (bytes), row groups or record batches `first:last`, or all."""

    source: int
    path: str
    kind: str
    first: int
    last: int


def cut_chunks(files: Sequence[SourceFile], chunk_bytes: int | None = None) -> list[Chunk]:
    """The files as chunks, in order; where they are cut changes nothing about the rows."""
    chunk_bytes = chunk_bytes or _chunk_bytes(sum(file.num_bytes for file in files))
    chunks = []
    for file in files:
        if PurePosixPath(file.path).suffix.lower() in COMPRESSIONS:
            cuts = [0, _TO_THE_END]
        elif file.kind == "jsonl":
            cuts = [*range(0, file.num_bytes, chunk_bytes), file.num_bytes]
        elif file.kind in ("parquet", "arrow"):
            cuts = _table_cuts(file, chunk_bytes)
        else:
            cuts = [0, file.num_bytes]
        chunks += [
            Chunk(file.source, file.path, file.kind, a, b) for a, b in itertools.pairwise(cuts)
        ]
    return chunks


def _chunk_bytes(total: int) -> int:
    """A power of two: files that grow a little leave the cuts of the others, and so their cached rows, as they are."""
    wanted = min(max(total // _USUAL_CHUNKS, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)
    return 1 << (wanted.bit_length() - 1)


def _table_cuts(file: SourceFile, chunk_bytes: int) -> list[int]:
    """Cuts between row groups (Parquet) or record batches (Arrow) so that each chunk has about `chunk_bytes`."""
    from pipelines.data.read.tables import table_sizes

    try:
        sizes = table_sizes(file.path, file.kind)
    except (ValueError, OSError) as error:
        key = f"data.sources.{file.source}.path" if file.source >= 0 else "data.benchmarks"
        raise UserError(f"{key}={file.path}: not {file.kind} ({_one_line(error)})") from error
    cuts, size = [0], 0
    for number, each in enumerate(sizes):
        size += each
        if size >= chunk_bytes:
            cuts.append(number + 1)
            size = 0
    return cuts if cuts[-1] == len(sizes) else [*cuts, len(sizes)]


def lines_between(path: str, first: int, last: int) -> int:
    """Number of lines that begin at a byte in `first:last` of a text file that is not compressed."""
    count, left = int(not first and last > 0), last - max(first, 1)
    with open_binary(path) as stream:
        stream.seek(max(first, 1) - 1)
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            count += block.count(b"\n")
            left -= len(block)
    return count
