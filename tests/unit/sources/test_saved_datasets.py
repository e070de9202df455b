"""Of a folder that `save_to_disk` wrote, the files of the right split are read, and no caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.sources.source_files import files_at, find_files
from tests.unit.data.row_files import write_rows

ROWS = [{"instruction": "a", "output": "b"}]


def save_dataset(folder: Path) -> None:
    """The files of Dataset.save_to_disk, and a cache of `map`."""
    folder.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    write_rows(folder / name, ROWS)
    write_rows(folder / "cache-0a1b.arrow", ROWS)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (folder / "dataset_info.json").write_text("{}")


def chosen(path: Path, **keys: Any) -> list[str]:
    files = find_files([SourceConfig(path=str(path), **keys)])
    return [str(Path(file.path).relative_to(path)) for file in files]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "outer" / "saved"
    for split in ("train", "test"):
        save_dataset(folder / split)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return folder


def test_the_split_of_the_source_is_read(saved: Path) -> None:
    assert chosen(saved) == ["train/data-00000-of-00001.arrow"]
    assert chosen(saved, split="heldout") == ["test/data-00000-of-00001.arrow"]
    assert chosen(saved / "train") == ["data-00000-of-00001.arrow"]
    with pytest.raises(
        UserError, match=r"its dataset_dict.json defines splits, and none is chosen"
    ):
        files_at(str(saved), "data.benchmarks.0")


def test_a_folder_above_a_saved_dataset_is_no_mixture_of_its_splits(saved: Path) -> None:
    with pytest.raises(UserError, match=r"saved has splits of its own; name that folder"):
        chosen(saved.parent)
