"""Selection of the files of a folder that have rows, by the rules of the `datasets` library.

A dataset repository on the Hub has splits: by the `configs:` of its README.md, else by the split's
name in the files' paths. In other folders only a README.md with `configs:` chooses among the files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from pipelines.core.errors import UserError
from pipelines.sources.saved_datasets import DESCRIPTIONS, saved_files, saved_splits

_TEXTS = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
_TABLES = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
COMPRESSIONS = (".gz", ".bz2", ".zst", ".xz")
SUFFIXES = {
    **_TEXTS,
    **_TABLES,
    **{f"{text}{end}": kind for text, kind in _TEXTS.items() for end in COMPRESSIONS},
}
KNOWN_TYPES = f"{', '.join([*_TEXTS, *_TABLES])}; text also with {', '.join(COMPRESSIONS)}"
# Splits of a repository that suit a source's `split`, best first. Held-out rows choose checkpoints,
# so a test split is left for benchmarks where there is a validation split.
_SUITABLE = {
    "auto": ("train",),
    "train": ("train",),
    "heldout": ("validation", "test"),
    "benchmark": ("test", "validation"),
}
_KEYWORDS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation",
    "dev": "validation", "val": "validation", "test": "test", "testing": "test", "eval": "test",
    "evaluation": "test",
}  # fmt: skip
_REPOSITORY = re.compile(
    r"(datasets/[^/]+/[^/@]+(?:@(?:refs/(?:convert|pr)/[^/]+|[^/]+))?)(?:/(.+))?"
)
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*")
_PREFERRED = (".csv", ".json", ".jsonl", ".arrow", ".parquet")

Splits = Mapping[str, Sequence[str]]


def is_data_file(path: str) -> bool:
    """True if a path in a folder is of a known type, not hidden and not a dataset's description."""
    parts = PurePosixPath(path).parts
    hidden = any(part.startswith((".", "__")) for part in parts)
    return (
        bool(parts) and not hidden and suffix_of(path) in SUFFIXES and parts[-1] not in DESCRIPTIONS
    )


def suffix_of(path: str) -> str:
    """A file's suffix in lower case; of a compressed file both, such as `.json.gz`."""
    name = PurePosixPath(path)
    end = name.suffix.lower()
    return f"{PurePosixPath(name.stem).suffix.lower()}{end}" if end in COMPRESSIONS else end


def repository_files(fs: Any, path: str, split: str, where: str) -> list[str]:
    """Sorted names of one split's files at `datasets/ORG/NAME[@REVISION][/FOLDER or CONFIG]`.

    `split` is a source's, or "benchmark". Raises OSError if the repository cannot be listed, and
    UserError beginning with `where` if the path must name a configuration or the files.
    """
    match = _REPOSITORY.fullmatch(path.rstrip("/"))
    if match is None:
        raise UserError(
            f"{where}: not a dataset; valid: hf://ORG/DATASET, optionally with @REVISION and a path"
        )
    root, folder = match[1], match[2] or ""
    readme = f"{root}/README.md"
    # Listing raises the Hub's own error; `exists` would hide it and answer False.
    configs = _configs(fs.cat_file(readme)) if readme in fs.ls(root, detail=False) else {}
    if folder not in configs and fs.isfile(path):
        return [path]
    config = configs.get(folder) if folder else _default(configs, where)
    return _of_config(
        fs, root if config is not None or not folder else f"{root}/{folder}", config, split, where
    )


def folder_files(
    fs: Any, path: str, split: str | None, where: str, own_first: bool = False
) -> list[str]:
    """Sorted names of the files in a folder that is no Hub repository, and in its subfolders.

    If the folder's README.md has `configs:`, or `save_to_disk` wrote the folder with several
    splits, only the files of `split`; the same for a path that names a configuration of the
    parent's README.md. With `own_first`, files in subfolders count only if the folder itself has
    none. Raises OSError if the folder cannot be listed, and UserError beginning with `where` if the
    path must name a configuration or the files; also if there are splits and `split` is None.
    """
    path = path.rstrip("/")
    parent, _, name = path.rpartition("/")
    if splits := saved_splits(fs, path):
        split = _required(split, "dataset_dict.json", where)
        return [f"{path}/{name}" for name in _of_split(splits, split, where)]
    if names := saved_files(fs, path):
        return [f"{path}/{name}" for name in names]
    configs, config = _configs_at(fs, path), _configs_at(fs, parent).get(name)
    if not configs and config is None:
        names = _names(fs, path) if fs.isdir(path) else []
        own = [name for name in names if "/" not in name] if own_first else []
        if names and not own and (saved := _saved_within(fs, path)):
            raise UserError(f"{where}: {saved} has splits of its own; name that folder")
        return [f"{path}/{name}" for name in own or names]
    split = _required(split, "README.md", where)
    if configs:
        return _of_config(fs, path, _default(configs, where), split, where)
    return _of_config(fs, parent, config, split, where)


def _saved_within(fs: Any, top: str) -> str:
    """The first folder below `top` that is a saved DatasetDict, relative to it; "" without one."""
    ends = (name.removeprefix(f"{top}/") for name in sorted(fs.find(top)))
    return next(
        (str(PurePosixPath(n).parent) for n in ends if n.endswith("/dataset_dict.json")), ""
    )


def _required(split: str | None, description: str, where: str) -> str:
    if split is None:
        raise UserError(
            f"{where}: its {description} defines splits, and none is chosen here; name the files"
        )
    return split


def _names(fs: Any, top: str) -> list[str]:
    return sorted(
        name for path in fs.find(top) if is_data_file(name := path.removeprefix(f"{top}/"))
    )


def _of_config(
    fs: Any, top: str, config: Mapping[str, Any] | None, split: str, where: str
) -> list[str]:
    """The files of one split in a folder, by a configuration if there is one."""
    folder = str(config.get("data_dir") or "").strip("./") if config is not None else ""
    top = f"{top}/{folder}" if folder else top
    if not fs.isdir(top):
        return []
    names = _names(fs, top)
    named = _named(names, config.get("data_files")) if config is not None else {}
    chosen = _of_split(named or _by_path(names), split, where) if names else []
    return [f"{top}/{name}" for name in _of_one_type(chosen)]


def _configs_at(fs: Any, root: str) -> dict[str, Mapping[str, Any]]:
    """The configurations in a folder's README.md; none if there is no readable README.md."""
    try:
        return _configs(fs.cat_file(f"{root}/README.md"))
    except OSError:
        return {}


def _configs(readme: bytes) -> dict[str, Mapping[str, Any]]:
    """Configurations by name, from the metadata at the top of a README.md."""
    parts = re.split(
        r"^---[ \t]*\r?$", readme.decode(errors="replace"), maxsplit=2, flags=re.MULTILINE
    )
    try:
        metadata = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return {}  # the Hub shows such a page without its metadata
    configs = metadata.get("configs") if isinstance(metadata, dict) else None
    entries = configs if isinstance(configs, list) else []
    return {
        str(entry.get("config_name", "default")): entry
        for entry in entries
        if isinstance(entry, dict)
    }


def _default(configs: Mapping[str, Mapping[str, Any]], where: str) -> Mapping[str, Any] | None:
    if len(configs) < 2:
        return next(iter(configs.values()), None)
    defaults = [
        config
        for name, config in configs.items()
        if config.get("default") is True or name == "default"
    ]
    if len(defaults) == 1:
        return defaults[0]
    raise UserError(
        f"{where}: it has the configurations {', '.join(configs)}; add one to the path: "
        f".../{next(iter(configs))}"
    )


def _named(names: Sequence[str], data_files: Any) -> dict[str, list[str]]:
    """Names by split, from a configuration's `data_files`: patterns, or pairs of split and path."""
    entries = data_files if isinstance(data_files, list) else [data_files] if data_files else []
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, patterns = (
            (str(entry.get("split", "train")), entry.get("path"))
            if isinstance(entry, dict)
            else ("train", entry)
        )
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            matches = _matcher(str(pattern))
            splits.setdefault(split, []).extend(name for name in names if matches.fullmatch(name))
    return {split: sorted(set(matched)) for split, matched in splits.items()}


def _matcher(pattern: str) -> re.Pattern[str]:
    from fsspec.utils import glob_translate

    pattern = pattern.removeprefix("./").rstrip("/")
    # A pattern without a wildcard in its last part may name a folder.
    inside = "" if "*" in PurePosixPath(pattern).name else "|" + glob_translate(f"{pattern}/**")
    return re.compile(glob_translate(pattern) + inside)


def _by_path(names: Sequence[str]) -> Splits:
    """Names by the split in shard names, else in folder names, else in file names; else "train"."""
    by_shard: dict[str, str] = {}
    by_folder: dict[str, str] = {}
    by_file: dict[str, str] = {}
    for name in names:
        path, shard = PurePosixPath(name), _SHARD.fullmatch(name)
        for split_of, split in (
            (by_shard, shard and shard[1]),
            (by_folder, _split_word(str(path.parent))),
            (by_file, _split_word(path.stem)),
        ):
            if split:
                split_of[name] = split
    chosen = by_shard or by_folder or by_file or dict.fromkeys(names, "train")
    return {
        split: [name for name in names if chosen.get(name) == split]
        for split in dict.fromkeys(chosen.values())
    }


def _split_word(text: str) -> str | None:
    """The split that a word of a text names."""
    return next(
        (_KEYWORDS[word] for word in re.split(r"[^a-z]+", text.lower()) if word in _KEYWORDS), None
    )


def _of_split(splits: Splits, split: str, where: str) -> Sequence[str]:
    """The names of the split that suits a source's `split`. Raises UserError listing the splits."""
    for wanted in _SUITABLE[split]:
        matches = (
            [wanted]
            if wanted in splits
            else [name for name in splits if _split_word(name) == wanted]
        )
        if len(matches) == 1:
            return splits[matches[0]]
        if matches:
            break
    else:
        only = next(iter(splits))
        trains = split in ("auto", "train")
        if len(splits) == 1 and (_split_word(only) in (None, "train") or not trains):
            return splits[only]
    listed = ", ".join(
        f"{name} ({files[0]}{', ...' if len(files) > 1 else ''})"
        for name, files in splits.items()
        if files
    )
    verb = "train on" if split in ("auto", "train") else "hold out"
    raise UserError(
        f"{where}: which of its splits to {verb}? Name the files, with * for several; it has "
        f"{listed}"
    )


def _of_one_type(names: Sequence[str]) -> list[str]:
    """The names of the most frequent type: a repository may have the same rows in several types."""
    counts = Counter(map(suffix_of, names))
    rank = {suffix: i for i, suffix in enumerate(_PREFERRED)}
    usual = max(counts, key=lambda suffix: (counts[suffix], rank.get(suffix, -1)), default="")
    return [name for name in names if suffix_of(name) == usual]
