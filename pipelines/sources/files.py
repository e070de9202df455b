"""Finding source files."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.sources.hub_datasets import (
    KNOWN_TYPES,
    SUFFIXES,
    folder_files,
    repository_files,
    suffix_of,
)
from pipelines.sources.open import _client_errors, _filesystem, _one_line, open_rows

# What an array begins with, by what the file's name says: of lines the first may be a list by mistake, but then ends there.
_ARRAYS = {
    "json": re.compile(rb"(?:\xef\xbb\xbf)?\s*\["),
    "jsonl": re.compile(rb"(?:\xef\xbb\xbf)?\s*(?!\[[^\n]*\]\s*\n\s*\S)\[\s*\{"),
}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; `source` is the number of the source in the recipe."""

    source: int
    path: str
    kind: str
    num_bytes: int


def find_files(sources: Sequence[SourceConfig]) -> list[SourceFile]:
    """Every file of the sources, each source's in the order of their names. Raises UserError naming the key and path."""
    return [
        file
        for i, each in enumerate(sources)
        for file in files_at(each.path, f"data.sources.{i}.path", i, each.split)
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
            raise UserError(
                f"{key}={name}: unknown file type {suffix or '(none)'}; valid: {KNOWN_TYPES}"
            )
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
        found = folder_files(
            LocalFileSystem(), f"{above}/{path.absolute().name}", split, where, own_first=True
        )
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
        raise UserError(
            f"{key}={uri}: nothing there of a known type ({KNOWN_TYPES}); check the {scheme}:// path"
        )
    return found


def _beginning(path: str) -> bytes:
    with open_rows(path) as stream:
        return stream.read(4096)
