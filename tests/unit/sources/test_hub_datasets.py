"""Which files of a folder or of a dataset repository are rows, and of which split."""

from __future__ import annotations

import gzip
import io
import sys
from typing import Any

import fsspec
import pytest

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.sources.source_files import files_at, find_files

ROW = b'{"prompt": "a", "completion": "b"}\n'


class Hub(fsspec.AbstractFileSystem):
    """Files as HfFileSystem names them, from a dictionary that the test fills."""

    protocol = "hf"
    cachable = False
    files: dict[str, bytes] = {}  # noqa: RUF012

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = str(self._strip_protocol(path))
        chosen_files: dict[str, dict[str, Any]] = {}
        for name, content in self.files.items():
            if name == path:
                return [{"name": name, "size": len(content), "type": "file"}]
            if name.startswith(f"{path}/"):
                child = f"{path}/{name.removeprefix(f'{path}/').split('/')[0]}"
                kind = "file" if child == name else "directory"
                chosen_files[child] = {
                    "name": child,
                    "size": len(content) if kind == "file" else 0,
                    "type": kind,
                }
        if not chosen_files:
            raise FileNotFoundError(path)
        return list(chosen_files.values()) if detail else list(chosen_files)

    def _open(self, path: str, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(self.files[path])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """`hub(names, readme)` puts files into datasets/org/set; `chosen_files` lists the choice."""
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "hf", Hub)
    monkeypatch.setattr(Hub, "files", {})

    def fill(*names: str, readme: str | None = None, at: str = "datasets/org/set") -> None:
        Hub.files |= {f"{at}/{name}": ROW for name in names}
        if readme is not None:
            Hub.files[f"{at}/README.md"] = f"---\nlicense: mit\n{readme}---\n# Set\n".encode()

    return fill


def chosen_files(path: str = "hf://org/set", split: Any = "auto") -> list[str]:
    files = find_files([SourceConfig(path=path, split=split)])
    assert all(
        file.path.startswith("hf://datasets/org/set") and file.num_bytes == len(ROW)
        for file in files
    )
    return [file.path.removeprefix("hf://datasets/org/set").lstrip("/") for file in files]


NOISE = (
    "dataset_infos.json",
    "config.json",
    ".cache/x.json",
    "__pycache__/y.json",
    "set.py",
    "LICENSE",
)
SHARDS = [
    f"data/{split}-0000{i}-of-00002.parquet"
    for split in ("train", "test", "validation")
    for i in (0, 1)
]


def test_a_repository_gives_the_files_of_the_split_and_no_description(hub):
    hub(*NOISE, *SHARDS)
    assert chosen_files() == chosen_files(split="train") == SHARDS[:2]
    assert chosen_files(split="heldout") == SHARDS[4:]
    assert [file.path for file in files_at("hf://org/set", "data.benchmarks.0")] == [
        f"hf://datasets/org/set/{name}" for name in SHARDS[2:4]
    ]
    assert chosen_files("hf://org/set/data") == SHARDS[:2]
    assert chosen_files("hf://org/set/data/test-*") == SHARDS[2:4]
    assert chosen_files("hf://org/set/dataset_infos.json") == [
        "dataset_infos.json"
    ]  # who names a file gets it


@pytest.mark.parametrize(
    ("names", "train", "heldout"),
    [
        (["train.jsonl", "test.jsonl"], ["train.jsonl"], ["test.jsonl"]),
        (["set_train.csv", "set-dev.csv", "set.test.csv"], ["set_train.csv"], ["set-dev.csv"]),
        (
            ["en/train/a.json", "en/train/b.json", "en/eval/a.json"],
            ["en/train/a.json", "en/train/b.json"],
            ["en/eval/a.json"],
        ),
        (
            ["training/test_1.json", "testing/test_1.json"],
            ["training/test_1.json"],
            ["testing/test_1.json"],
        ),
        (["alpaca.json"], ["alpaca.json"], ["alpaca.json"]),
        (
            ["trained.json", "contest.json"],
            ["contest.json", "trained.json"],
            ["contest.json", "trained.json"],
        ),
        (["train.json", "notes.json"], ["train.json"], ["train.json"]),
        (["a.json", "a.parquet"], ["a.parquet"], ["a.parquet"]),
        (["a.json", "b.json", "ab.parquet"], ["a.json", "b.json"], ["a.json", "b.json"]),
        (["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"],
         ["data/train_sft-00000-of-00001.parquet"], ["data/test_sft-00000-of-00001.parquet"]),
    ],
)  # fmt: skip
def test_splits_follow_from_names_as_in_the_datasets_library(hub, names, train, heldout):
    hub(*NOISE, *names)
    assert chosen_files() == train and chosen_files(split="heldout") == heldout


ONE = (
    "configs:\n- config_name: all\n  data_files:\n"
    "  - {split: train, path: 'x/a-*'}\n  - {split: test, path: [x/b.json, 'y/**']}\n"
)
MANY = """configs:
- config_name: main
  data_files:
  - {split: train, path: main/train*}
  - {split: test, path: main/test*}
- config_name: other
  data_files: other/*.jsonl
- config_name: third
  data_dir: third
"""
MANY_FILES = [
    "main/train.json",
    "main/test.json",
    "other/x.jsonl",
    "third/train.json",
    "third/test.json",
]


def test_a_readmes_configuration_comes_before_names(hub):
    hub(
        "x/a-1.json",
        "x/a-2.json",
        "x/b.json",
        "y/c/d.json",
        "train.json",
        "x/deep/a-3.json",
        readme=ONE,
    )
    assert chosen_files() == ["x/a-1.json", "x/a-2.json"] and chosen_files(split="heldout") == [
        "x/b.json",
        "y/c/d.json",
    ]


def test_of_several_configurations_one_must_be_the_default_or_named(hub):
    hub(*MANY_FILES, readme=MANY)
    with pytest.raises(
        UserError,
        match=r"^data.sources.0.path=hf://datasets/org/set: it has the configurations "
        r"main, other, third; add one",
    ):
        chosen_files()
    assert chosen_files("hf://org/set/main") == ["main/train.json"] and chosen_files(
        "hf://org/set/other"
    ) == ["other/x.jsonl"]
    assert chosen_files("hf://org/set/third", "heldout") == ["third/test.json"]
    hub(readme=MANY.replace("- config_name: other", "- config_name: other\n  default: true"))
    assert chosen_files() == ["other/x.jsonl"]


def test_a_readme_without_usable_configurations_is_ignored(hub):
    for readme in ("configs: 5\n", "a: [\n", "configs:\n- x\n", "configs:\n- {config_name: d}\n"):
        hub("train.json", "test.json", readme=readme)
        assert chosen_files() == ["train.json"]


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"], "auto",
         "which of its splits to train on.*train_gen .data/train_gen-00000-of-.*train_sft"),
        (["test.json"], "auto", "which of its splits to train on.*test .test.json"),
        (["data/a-00000-of-00001.json", "data/b-00000-of-00001.json"], "heldout",
         "which of its splits to hold out"),
        (["config.json", "x.txt"], "auto", "no file of a known type"),
    ],
)  # fmt: skip
def test_an_ambiguous_split_is_refused_in_one_line_that_lists_the_splits(
    hub, names, split, message
):
    hub(*names)
    with pytest.raises(UserError, match=message) as error:
        chosen_files(split=split)
    assert "\n" not in str(error.value)


def test_a_revision_is_kept_in_the_names(hub):
    hub("train.json", at="datasets/org/set@refs/convert/parquet")
    assert chosen_files("hf://org/set@refs/convert/parquet") == ["@refs/convert/parquet/train.json"]
    hub("x/train.json", at="datasets/org/set@v1")
    assert chosen_files("hf://org/set@v1/x") == ["@v1/x/train.json"]


def test_a_local_folder_gives_no_descriptions(tmp_path):
    for name in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json", ".hidden.json"):
        (tmp_path / name).write_bytes(ROW)
    assert [file.path for file in files_at(str(tmp_path), "k")] == [
        str(tmp_path / "data-00000-of-00001.arrow")
    ]


def files_in(folder, path: str = "", split: Any = "auto") -> list[str]:
    chosen_files = find_files([SourceConfig(path=f"{folder}{path}", split=split)])
    return [file.path.removeprefix(str(folder)).lstrip("/") for file in chosen_files]


def fill(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(ROW) if name.endswith(".gz") else ROW)


def test_a_local_folder_without_files_of_its_own_gives_those_of_its_folders(tmp_path, monkeypatch):
    fill(tmp_path, *NOISE, "data/train-00000-of-00001.jsonl", "b/c/x.csv", "b/y.jsonl.gz")
    everything = ["b/c/x.csv", "b/y.jsonl.gz", "data/train-00000-of-00001.jsonl"]
    assert files_in(tmp_path) == everything
    fill(tmp_path, "a.json")
    assert files_in(tmp_path) == ["a.json"]
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in files_at("b/", "k") + files_at("data", "k")] == [
        "b/y.jsonl.gz",
        "data/train-00000-of-00001.jsonl",
    ]


@pytest.mark.parametrize("remote", [False, True])
def test_a_clone_of_a_repository_follows_its_readme(tmp_path, remote):
    folder = "memory:///clones/set" if remote else str(tmp_path)

    def write(name: str, content: bytes) -> None:
        fs, path = fsspec.url_to_fs(f"{folder}/{name}", auto_mkdir=True)
        fs.pipe_file(path, content)

    def readme(text: str) -> None:
        write("README.md", f"---\n{text}---\n".encode())

    for name in ("x/a-1.json", "x/b.json", "y/d.json", "z.json", *MANY_FILES):
        write(name, ROW)
    readme(ONE)
    if not remote:
        with pytest.raises(
            UserError, match=r"^k=.*: its README.md defines splits, .* name the files$"
        ):
            files_at(folder, "k")
    assert files_in(folder) == ["x/a-1.json"] and files_in(folder, split="heldout") == [
        "x/b.json",
        "y/d.json",
    ]
    assert files_in(folder, "/x") == ["x/a-1.json", "x/b.json"]
    readme(MANY)
    with pytest.raises(
        UserError, match=r"it has the configurations main, other, third; add one to the path"
    ):
        files_in(folder)
    assert files_in(folder, "/main") == ["main/train.json"]
    assert files_in(folder, "/third", "heldout") == ["third/test.json"]


def test_a_missing_repository_is_refused_in_one_line(hub):
    with pytest.raises(
        UserError,
        match=r"data.sources.0.path=hf://datasets/org/none: cannot be reached \(.*org/none\)",
    ):
        chosen_files("hf://org/none")
