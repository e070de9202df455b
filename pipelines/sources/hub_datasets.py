"""Which files of a folder hold rows; of a dataset repository on the Hub those of the split that is asked for, found as the
datasets library finds them: by the `configs:` of its README.md, else by the split's name in their paths. In other folders
only such a README.md chooses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from pipelines.core.errors import UserError

_TEXTS = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
_TABLES = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
SUFFIXES = {
    **_TEXTS,
    **_TABLES,
    **{f"{text}{end}": kind for text, kind in _TEXTS.items() for end in COMPRESSIONS},
}
KNOWN_TYPES = f"{', '.join([*_TEXTS, *_TABLES])}; text also with {', '.join(COMPRESSIONS)}"
# What a name is looked for, in this order. Held-out rows choose checkpoints: a test split is left for benchmarks if it can be.
_WANTED = {
    "auto": ("train",),
    "train": ("train",),
    "heldout": ("validation", "test"),
    "benchmark": ("test", "validation"),
}
_KEYWORDS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "dev": "validation",
    "val": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_ABOUT_DATA = {
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}
_REPOSITORY = re.compile(
    r"(datasets/[^/]+/[^/@]+(?:@(?:refs/(?:convert|pr)/[^/]+|[^/]+))?)(?:/(.+))?"
)
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*")
_FAVOURITES = (".csv", ".json", ".jsonl", ".arrow", ".parquet")

Splits = Mapping[str, Sequence[str]]


def is_data_file(path: str) -> bool:
    """Whether a path inside a folder is of a known type, not hidden and no description of a dataset."""
    parts = PurePosixPath(path).parts
    hidden = any(part.startswith((".", "__")) for part in parts)
    return (
        bool(parts) and not hidden and suffix_of(path) in SUFFIXES and parts[-1] not in _ABOUT_DATA
    )


def suffix_of(path: str) -> str:
    """The end of a file's name from its last dot on, in small letters; of a compressed file the last two: `.json.gz`."""
    name = PurePosixPath(path)
    end = name.suffix.lower()
    return f"{PurePosixPath(name.stem).suffix.lower()}{end}" if end in COMPRESSIONS else end


def repository_files(fs: Any, path: str, split: str, where: str) -> list[str]:
    """Names of the files of one split at `datasets/ORG/NAME[@REVISION][/FOLDER or CONFIG]`, sorted; none if there is nothing
    of the kind.

    `split` is a source's, or "benchmark". Raises OSError if the repository cannot be listed, UserError beginning with `where` if a configuration or the files must be
    named.
    """
    match = _REPOSITORY.fullmatch(path.rstrip("/"))
    if match is None:
        raise UserError(
            f"{where}: not a dataset; valid: hf://ORG/DATASET, with @REVISION and a path behind it if need be"
        )
    root, folder = match[1], match[2] or ""
    readme = f"{root}/README.md"
    # Asking whether a file is there would hide why the Hub does not answer; this raises it.
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
    """Names of the files in any other folder and its folders, sorted: those of one split if its README.md, or for the name
    of a configuration that of the folder above, has `configs:`, else all; with `own_first` none of its folders' if it holds
    some itself.

    Raises OSError if the folder cannot be listed, UserError beginning with `where` if a configuration or the files must be
    named; so must they if a README.md tells splits apart and `split` is None.
    """
    path = path.rstrip("/")
    above, _, name = path.rpartition("/")
    configs, config = _configs_at(fs, path), _configs_at(fs, above).get(name)
    if not configs and config is None:
        names = _names(fs, path) if fs.isdir(path) else []
        own = [name for name in names if "/" not in name] if own_first else []
        return [f"{path}/{name}" for name in own or names]
    if split is None:
        raise UserError(
            f"{where}: its README.md tells splits apart, which is not known here; name the files"
        )
    if configs:
        return _of_config(fs, path, _default(configs, where), split, where)
    return _of_config(fs, above, config, split, where)


def _names(fs: Any, top: str) -> list[str]:
    return sorted(
        name for found in fs.find(top) if is_data_file(name := found.removeprefix(f"{top}/"))
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
    """As `_configs`, none where there is no README.md that can be read."""
    try:
        return _configs(fs.cat_file(f"{root}/README.md"))
    except OSError:
        return {}


def _configs(readme: bytes) -> dict[str, Mapping[str, Any]]:
    parts = re.split(
        r"^---[ \t]*\r?$", readme.decode(errors="replace"), maxsplit=2, flags=re.MULTILINE
    )
    try:
        metadata = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return {}  # the Hub shows such a page without its metadata
    configs = metadata.get("configs") if isinstance(metadata, dict) else None
    found = (
        [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []
    )
    return {str(each.get("config_name", "default")): each for each in found}


def _default(configs: Mapping[str, Mapping[str, Any]], where: str) -> Mapping[str, Any] | None:
    if len(configs) < 2:
        return next(iter(configs.values()), None)
    named = [
        each for name, each in configs.items() if each.get("default") is True or name == "default"
    ]
    if len(named) == 1:
        return named[0]
    raise UserError(
        f"{where}: it has the configurations {', '.join(configs)}; put one behind the path: .../{next(iter(configs))}"
    )


def _named(names: Sequence[str], data_files: Any) -> dict[str, list[str]]:
    """Names by split, as a configuration's `data_files` groups them: patterns, or lists of `split` and `path`."""
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
    return {split: sorted(set(found)) for split, found in splits.items()}


def _matcher(pattern: str) -> re.Pattern[str]:
    from fsspec.utils import glob_translate

    pattern = pattern.removeprefix("./").rstrip("/")
    whole = "" if "*" in PurePosixPath(pattern).name else "|" + glob_translate(f"{pattern}/**")
    return re.compile(glob_translate(pattern) + whole)


def _by_path(names: Sequence[str]) -> Splits:
    """Names by the split that the shards' names, else folders, else files say; all to train on if none says any."""
    told: list[dict[str, str]] = [{}, {}, {}]
    for name in names:
        path, shard = PurePosixPath(name), _SHARD.fullmatch(name)
        for found, split in zip(
            told, (shard and shard[1], _kind(str(path.parent)), _kind(path.stem)), strict=True
        ):
            if split:
                found[name] = split
    chosen = next((found for found in told if found), dict.fromkeys(names, "train"))
    return {
        split: [name for name in names if chosen.get(name) == split]
        for split in dict.fromkeys(chosen.values())
    }


def _kind(text: str) -> str | None:
    """The split that a word of a text names."""
    return next(
        (_KEYWORDS[word] for word in re.split(r"[^a-z]+", text.lower()) if word in _KEYWORDS), None
    )


def _of_split(splits: Splits, split: str, where: str) -> Sequence[str]:
    for wanted in _WANTED[split]:
        alike = [wanted] if wanted in splits else [name for name in splits if _kind(name) == wanted]
        if len(alike) == 1:
            return splits[alike[0]]
        if alike:
            break
    else:
        only = next(iter(splits))
        if len(splits) == 1 and (_kind(only) in (None, "train") or split not in ("auto", "train")):
            return splits[only]
    listed = ", ".join(
        f"{name} ({found[0]}{', ...' if len(found) > 1 else ''})"
        for name, found in splits.items()
        if found
    )
    verb = "train on" if split in ("auto", "train") else "hold out"
    raise UserError(
        f"{where}: which of its splits to {verb}? Name the files, with * for several; it has {listed}"
    )


def _of_one_type(names: Sequence[str]) -> list[str]:
    """Those of the most frequent type: a repository may hold the same rows in several."""
    counts = Counter(map(suffix_of, names))
    rank = {suffix: i for i, suffix in enumerate(_FAVOURITES)}
    usual = max(counts, key=lambda suffix: (counts[suffix], rank.get(suffix, -1)), default="")
    return [name for name in names if suffix_of(name) == usual]
