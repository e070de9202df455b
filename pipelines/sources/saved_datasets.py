"""Folders that `save_to_disk` of the `datasets` library wrote: their splits and data files."""

from __future__ import annotations

import json
from typing import Any

DESCRIPTIONS = {
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}
"""Files in folders of datasets that have no rows."""


def saved_splits(fs: Any, path: str) -> dict[str, list[str]]:
    """The data files of each split of a saved DatasetDict, relative to its folder, else none."""
    splits = _read(fs, f"{path}/dataset_dict.json").get("splits")
    names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
    return {
        split: [f"{split}/{name}" for name in saved_files(fs, f"{path}/{split}")] for split in names
    }


def saved_files(fs: Any, path: str) -> list[str]:
    """The data files of a saved Dataset, relative to its folder, else none.

    Other Arrow files of the folder, such as caches of `map`, do not belong to the dataset.
    """
    entries = _read(fs, f"{path}/state.json").get("_data_files")
    if not isinstance(entries, list):
        return []
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str)]


def _read(fs: Any, path: str) -> dict[str, Any]:
    try:
        value = json.loads(fs.cat_file(path))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
