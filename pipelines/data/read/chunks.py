"""Chunks: the parts of files that tasks read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.core.errors import UserError, one_line
from pipelines.data.read.file_type import FileType, check_keys, file_type
from pipelines.sources.open import REASON_CHARS, open_binary
from pipelines.sources.source_files import SourceFile

# Small inputs still give several tasks work; tasks on large ones outlast their scheduling.
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES, _USUAL_CHUNKS = 1 << 20, 16 << 20, 16
_TO_THE_END = 1 << 62  # of a compressed file, the number of its bytes is known only at its end


@dataclass(frozen=True)
class Chunk:
    """A part of a file, by its kind.

    jsonl: the lines that begin at the bytes `first:last`. parquet, arrow: the row groups or record
    batches `first:last`. Other kinds: the complete file.
    """

    source: int
    path: str
    type: FileType
    first: int
    last: int

    @property
    def kind(self) -> str:
        return self.type.kind

    @property
    def is_table(self) -> bool:
        """Whether its rows have null where a field is absent."""
        return self.type.kind in ("parquet", "arrow")


def cut_chunks(files: Sequence[SourceFile], chunk_bytes: int | None = None) -> list[Chunk]:
    """The files as chunks, in order. Where files are cut does not change the rows.

    Looks at the first bytes of every file. Raises UserError for a file that holds no rows, for one
    that cannot be read without a key of its source, and for a key that no file of its source needs.
    """
    chunk_bytes = chunk_bytes or _chunk_bytes(sum(file.num_bytes for file in files))
    types = [file_type(file) for file in files]
    check_keys(files, types)
    chunks = []
    for file, of in zip(files, types, strict=True):
        if not of.can_be_cut:
            cuts = [0, _TO_THE_END]
        elif of.kind == "jsonl":
            cuts = [*range(0, file.num_bytes, chunk_bytes), file.num_bytes]
        else:
            cuts = _table_cuts(file, of.kind, chunk_bytes)
        chunks += [Chunk(file.source, file.path, of, a, b) for a, b in itertools.pairwise(cuts)]
    return chunks


def _chunk_bytes(total: int) -> int:
    # A power of two: when one file grows a little, the cuts of the others stay, and so do their
    # cached rows.
    target = min(max(total // _USUAL_CHUNKS, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)
    return 1 << (target.bit_length() - 1)


def _table_cuts(file: SourceFile, kind: str, chunk_bytes: int) -> list[int]:
    """Cuts between row groups or record batches that give chunks of about `chunk_bytes`."""
    from pipelines.data.read.tables import table_sizes

    try:
        sizes = table_sizes(file.path, kind)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{file.name}: damaged, or not {kind} ({one_line(error, REASON_CHARS)}); fix or "
            "replace the file"
        ) from error
    cuts, size = [0], 0
    for number, part_bytes in enumerate(sizes):
        size += part_bytes
        if size >= chunk_bytes:
            cuts.append(number + 1)
            size = 0
    return cuts if cuts[-1] == len(sizes) else [*cuts, len(sizes)]


def line_of(chunk: Chunk, row: int) -> int:
    """The line of a row by its number in the chunk; in files without lines its number, from 1."""
    is_later = chunk.kind == "jsonl" and chunk.first > 0
    return (lines_between(chunk.path, 0, chunk.first) if is_later else 0) + row + 1


def lines_between(path: str, first: int, last: int) -> int:
    """Number of lines that begin at the bytes `first:last` of an uncompressed text file."""
    count, left = int(not first and last > 0), last - max(first, 1)
    with open_binary(path) as stream:
        stream.seek(max(first, 1) - 1)
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            count += block.count(b"\n")
            left -= len(block)
    return count
