"""Chunks: the parts of files that tasks read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.core.errors import UserError, one_line
from pipelines.sources.hub_datasets import COMPRESSIONS
from pipelines.sources.open import REASON_CHARS, open_binary
from pipelines.sources.source_files import SourceFile

# Small inputs still give several tasks work; tasks on large ones outlast their scheduling.
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES, _USUAL_CHUNKS = 1 << 20, 16 << 20, 16
_TO_THE_END = 1 << 62  # a compressed file's size without compression is known only at its end


@dataclass(frozen=True)
class Chunk:
    """A part of a file, by its kind.

    jsonl: the lines that begin at the bytes `first:last`. parquet, arrow: the row groups or record
    batches `first:last`. Other kinds: the complete file.
    """

    source: int
    path: str
    kind: str
    first: int
    last: int


def cut_chunks(files: Sequence[SourceFile], chunk_bytes: int | None = None) -> list[Chunk]:
    """The files as chunks, in order. Where files are cut does not change the rows."""
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
    # A power of two: when one file grows a little, the cuts of the others stay, and so do their
    # cached rows.
    target = min(max(total // _USUAL_CHUNKS, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)
    return 1 << (target.bit_length() - 1)


def _table_cuts(file: SourceFile, chunk_bytes: int) -> list[int]:
    """Cuts between row groups or record batches that give chunks of about `chunk_bytes`."""
    from pipelines.data.read.tables import table_sizes

    try:
        sizes = table_sizes(file.path, file.kind)
    except (ValueError, OSError) as error:
        key = f"data.sources.{file.source}.path" if file.source >= 0 else "data.benchmarks"
        raise UserError(
            f"{key}={file.path}: not {file.kind} ({one_line(error, REASON_CHARS)})"
        ) from error
    cuts, size = [0], 0
    for number, part_bytes in enumerate(sizes):
        size += part_bytes
        if size >= chunk_bytes:
            cuts.append(number + 1)
            size = 0
    return cuts if cuts[-1] == len(sizes) else [*cuts, len(sizes)]


def lines_between(path: str, first: int, last: int) -> int:
    """Number of lines that begin at the bytes `first:last` of an uncompressed text file."""
    count, left = int(not first and last > 0), last - max(first, 1)
    with open_binary(path) as stream:
        stream.seek(max(first, 1) - 1)
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            count += block.count(b"\n")
            left -= len(block)
    return count
