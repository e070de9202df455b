"""Finding the files that a recipe names. Light: a command that finds its work done loads this."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError, one_line
from pipelines.sources.hub_datasets import (
    COMPRESSIONS,
    KNOWN_TYPES,
    SUFFIXES,
    folder_files,
    repository_files,
    suffix_of,
)
from pipelines.sources.open import REASON_CHARS, file_system_of
from pipelines.storage import client_errors, nearest_path

# Files with these endings, and no other unknown ones, may hold rows: their first bytes decide.
_BY_CONTENT = {"", ".txt"}
_BY_CONTENT |= {f"{ending}{end}" for ending in _BY_CONTENT for end in COMPRESSIONS}
_ADVICE = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), "save the sheet as CSV (UTF-8)"),
    **dict.fromkeys((".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz"), "unpack it"),
}
_MAX_SHOWN = 5  # names of a folder, in a message
NO_KEYS = SourceConfig(path="-")
"""The entry of files that no source names, such as benchmarks."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; `source` is the number of the source in the recipe, -1 without one.

    `kind` is its type by its name: json, jsonl, csv, tsv, parquet, arrow, or empty where the name
    does not tell. `config` is the source's entry and `key` where it is in the recipe.
    """

    source: int
    path: str
    kind: str
    num_bytes: int
    key: str = "data.sources"
    config: SourceConfig = NO_KEYS

    @property
    def name(self) -> str:
        """Key and path, with which messages about the file begin."""
        return f"{self.key}={self.path}"

    def advice(self, keys: str) -> str:
        """How to set keys of the source; a benchmark has none."""
        if self.source < 0:
            return "save the file otherwise, as benchmarks have no keys"
        return f"set the source's {keys}"


def find_files(sources: Sequence[SourceConfig]) -> list[SourceFile]:
    """All files of the sources, each source's by name. Raises UserError naming key and path."""
    return [
        file
        for i, source in enumerate(sources)
        for file in files_at(source.path, f"data.sources.{i}.path", i, source.split, source)
    ]


def benchmark_files(paths: Sequence[str]) -> list[SourceFile]:
    """The files of `data.benchmarks`. Raises UserError naming the key and path."""
    return [
        file
        for i, path in enumerate(paths)
        for file in files_at(path, f"data.benchmarks.{i}", split="benchmark")
    ]


def files_at(
    path: str,
    key: str,
    source: int = -1,
    split: str | None = None,
    config: SourceConfig = NO_KEYS,
) -> list[SourceFile]:
    """The files at one path of the recipe; of a dataset repository only those of `split`.

    Raises UserError naming `key`, also when the path has several splits and `split` is None.
    """
    names = (
        _remote_files(path, key, split or "benchmark")
        if "://" in path
        else [(str(p), _size_of(p, f"{key}={p}")) for p in _local_files(path, key, split)]
    )
    return [
        SourceFile(source, name, _kind_of(name, f"{key}={name}"), size, key, config)
        for name, size in names
    ]


def _kind_of(name: str, where: str) -> str:
    """The type of a file by its name. Raises UserError for a name that no file of rows has."""
    suffix = suffix_of(name)
    kind = SUFFIXES.get(suffix, "" if suffix in _BY_CONTENT else None)
    if kind is None:
        advice = _ADVICE.get(suffix)
        raise UserError(
            f"{where}: unknown file type {suffix}; "
            + (f"{advice}; " if advice else "")
            + f"valid: {KNOWN_TYPES}"
        )
    return kind


def _size_of(path: Path, where: str) -> int:
    """A local file's size. Raises UserError for a file that will not open, or without a text name.

    A folder of `save_to_disk` may name a file that it lacks.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = where.encode(errors="backslashreplace").decode()
        raise UserError(f"{shown}: the file's name is not UTF-8; rename the file") from error
    try:
        with open(path, "rb"):
            return path.stat().st_size
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({one_line(error, REASON_CHARS)})") from error


def _local_files(text: str, key: str, split: str | None) -> list[Path]:
    path = Path(text)
    if path.is_file():
        return [path]
    files = [path.parent / name for name in _in_local_folder(path, split, f"{key}={text}")]
    if files:
        return files
    if path.is_dir():
        raise UserError(
            f"{key}={text}: the folder has no file of a known type ({KNOWN_TYPES}); it has "
            + (", ".join(sorted(p.name for p in path.iterdir())[:_MAX_SHOWN]) or "nothing")
        )
    files = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
    if files:
        return files
    if path.is_symlink():
        raise UserError(f"{key}={text}: a link to {os.readlink(path)}, which does not exist")
    if path.exists():
        raise UserError(f"{key}={text}: not a regular file; save its rows as one")
    near = nearest_path(path)
    hint = f"did you mean {near}?" if near else "set a file, a folder or a glob"
    noun = "no file matches this glob" if glob.has_magic(text) else "no such file"
    raise UserError(f"{key}={text}: {noun}; {hint}")


def _in_local_folder(path: Path, split: str | None, where: str) -> list[str]:
    """Names of the files in a folder, relative to its parent.

    A path that is no folder may still be the name of a configuration in its parent's README.md.
    """
    from fsspec.implementations.local import LocalFileSystem

    parent = path.absolute().parent.as_posix().rstrip("/")
    try:
        files = folder_files(
            LocalFileSystem(), f"{parent}/{path.absolute().name}", split, where, own_first=True
        )
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({one_line(error, REASON_CHARS)})") from error
    return [name.removeprefix(f"{parent}/") for name in files]


def _remote_files(uri: str, key: str, split: str) -> list[tuple[str, int]]:
    """Names and sizes of the files at a URI."""
    if uri.startswith("hf://") and not uri.startswith(("hf://datasets/", "hf://buckets/")):
        uri = f"hf://datasets/{uri.removeprefix('hf://')}"
    fs, inner = file_system_of(uri, key)
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
        files = [(fs.unstrip_protocol(name), int(fs.size(name) or 0)) for name in names]
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, *client_errors()) as error:
        raise UserError(
            f"{key}={uri}: cannot be reached ({one_line(error, REASON_CHARS)}); check path, "
            "network and credentials"
        ) from error
    if not files:
        raise UserError(
            f"{key}={uri}: no file of a known type ({KNOWN_TYPES}); check the {scheme}:// path"
        )
    return files
