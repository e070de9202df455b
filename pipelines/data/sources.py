"""Source files, local or behind an fsspec URI, found and cut into chunks that tasks can read apart."""

from __future__ import annotations

import difflib
import glob
import hashlib
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipelines.contracts import UserError
from pipelines.data.data_files import COMPRESSIONS, KNOWN_TYPES, SUFFIXES, folder_files, repository_files, suffix_of
from pipelines.recipe import SourceConfig

# Small inputs still make work for several tasks; large ones make tasks that outlast their scheduling.
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES, _USUAL_CHUNKS = 1 << 20, 16 << 20, 16
# What an array begins with, by what the file's name says: of lines the first may be a list by mistake, but then ends there.
_ARRAYS = {
    "json": re.compile(rb"(?:\xef\xbb\xbf)?\s*\["),
    "jsonl": re.compile(rb"(?:\xef\xbb\xbf)?\s*(?!\[[^\n]*\]\s*\n\s*\S)\[\s*\{"),
}
_TO_THE_END = 1 << 62  # how many bytes a compressed file holds shows only at its end


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; `source` is the number of the source in the recipe."""

    source: int
    path: str
    kind: str
    num_bytes: int


@dataclass(frozen=True)
class Chunk:
    """A part of a file: lines that begin in `first:last` (bytes), row groups or record batches `first:last`, or all."""

    source: int
    path: str
    kind: str
    first: int
    last: int


@contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """A file of any source, its bytes as they are. Raises UserError when a remote one cannot be reached."""
    if "://" not in path:
        with open(path, "rb") as stream:
            yield stream
        return
    fs, inner = _filesystem(path)
    with fs.open(inner, "rb") as stream:
        yield stream


@contextmanager
def open_rows(path: str) -> Iterator[IO[bytes]]:
    """As `open_binary`, of a compressed file what it holds. Reading raises UserError when that is damaged."""
    compression = COMPRESSIONS.get(PurePosixPath(path).suffix.lower())
    with open_binary(path) as stream:
        if compression is None:
            yield stream
            return
        import pyarrow

        try:
            with pyarrow.CompressedInputStream(stream, compression) as plain:
                yield io.BufferedReader(plain)
        except OSError as error:
            raise UserError(f"{path}: damaged ({_one_line(error)}); mend or replace the file") from error


def find_files(sources: Sequence[SourceConfig]) -> list[SourceFile]:
    """Every file of the sources, each source's in the order of their names. Raises UserError naming the key and path."""
    return [
        file for i, each in enumerate(sources) for file in files_at(each.path, f"data.sources.{i}.path", i, each.split)
    ]


def files_at(path: str, key: str, source: int = -1, split: str | None = None) -> list[SourceFile]:
    """The files at one path of the recipe; of a dataset those that suit `split`. Raises UserError naming `key`, also where
    there is a split to choose and none is given.
    """
    found = (
        _remote_files(path, key, split or "benchmark")
        if "://" in path
        else [(str(p), p.stat().st_size) for p in _local_files(path, key, split)]
    )
    files = []
    for name, size in found:
        suffix = suffix_of(name)
        kind = SUFFIXES.get(suffix)
        if kind is None:
            raise UserError(f"{key}={name}: unknown file type {suffix or '(none)'}; valid: {KNOWN_TYPES}")
        if kind in ("json", "jsonl"):
            kind = "json" if _ARRAYS[kind].match(_beginning(name)) else "jsonl"
        files.append(SourceFile(source, name, kind, size))
    return files


def _local_files(text: str, key: str, split: str | None) -> list[Path]:
    path = Path(text)
    if path.is_file():
        return [path]
    found = [path.parent / name for name in _in_local_folder(path, split, f"{key}={text}")]
    if found:
        return found
    if path.is_dir():
        raise UserError(f"{key}={text}: the folder holds no file of a known type ({KNOWN_TYPES})")
    found = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
    if found:
        return found
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    hint = f"did you mean {path.parent / near[0]}?" if near else "set a file, a folder or a glob"
    raise UserError(f"{key}={text}: no such file; {hint}")


def _in_local_folder(path: Path, split: str | None, where: str) -> list[str]:
    """Names relative to the folder above of what a folder, or a configuration of that name, gives."""
    from fsspec.implementations.local import LocalFileSystem

    above = path.absolute().parent.as_posix().rstrip("/")
    try:
        found = folder_files(LocalFileSystem(), f"{above}/{path.absolute().name}", split, where, own_first=True)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({_one_line(error)})") from error
    return [name.removeprefix(f"{above}/") for name in found]


def _remote_files(uri: str, key: str, split: str) -> list[tuple[str, int]]:
    if uri.startswith("hf://") and not uri.startswith(("hf://datasets/", "hf://buckets/")):
        uri = f"hf://datasets/{uri.removeprefix('hf://')}"
    fs, inner = _filesystem(uri, key)
    scheme = uri.split("://", 1)[0]
    try:
        if any(c in inner for c in "*?["):
            names = sorted(fs.glob(inner))
        elif uri.startswith("hf://datasets/"):
            names = repository_files(fs, inner, split, f"{key}={uri}")
        elif fs.isfile(inner):
            names = [inner]
        else:
            names = folder_files(fs, inner, split, f"{key}={uri}")
        found = [(fs.unstrip_protocol(name), int(fs.size(name) or 0)) for name in names]
    except (OSError, ValueError, RuntimeError, ImportError, *_client_errors()) as error:
        raise UserError(
            f"{key}={uri}: cannot be reached ({_one_line(error)}); check path, network and credentials"
        ) from error
    if not found:
        raise UserError(f"{key}={uri}: nothing there of a known type ({KNOWN_TYPES}); check the {scheme}:// path")
    return found


def _client_errors() -> list[type[Exception]]:
    """Base errors of the network clients that fsspec's file systems have loaded; they share no base of their own."""
    known = {
        "httpx": "HTTPError",
        "httpx2": "HTTPError",
        "aiohttp": "ClientError",
        "botocore.exceptions": "BotoCoreError",
    }
    return [getattr(sys.modules[name], error) for name, error in known.items() if name in sys.modules]


def _filesystem(uri: str, key: str = "data.sources") -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        scheme = uri.split("://", 1)[0]
        raise UserError(f"{key}={uri}: {scheme}:// cannot be read here ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _beginning(path: str) -> bytes:
    with open_rows(path) as stream:
        return stream.read(4096)


def content_digest(path: str) -> str:
    """Hex sha256 of a file's bytes, local or remote."""
    digest = hashlib.sha256()
    with open_binary(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        chunks += [Chunk(file.source, file.path, file.kind, a, b) for a, b in itertools.pairwise(cuts)]
    return chunks


def _chunk_bytes(total: int) -> int:
    """A power of two: files that grow a little leave the cuts of the others, and so their cached rows, as they are."""
    wanted = min(max(total // _USUAL_CHUNKS, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)
    return 1 << (wanted.bit_length() - 1)


def _table_cuts(file: SourceFile, chunk_bytes: int) -> list[int]:
    """Cuts between row groups (Parquet) or record batches (Arrow) so that each chunk has about `chunk_bytes`."""
    from pipelines.data.readers import table_sizes

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
