"""Source files are found and opened, local and remote, as lines or as an array."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.config.load import load_recipe
from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.read.rows import read_chunk
from pipelines.sources.source_files import files_at, find_files
from tests.unit.data.row_files import ROWS, read_rows


def test_a_json_file_may_contain_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (file,) = files_at(str(path), "data.sources.0.path")
    assert {chunk.kind for chunk in cut_chunks([file])} == {"jsonl"}


@pytest.mark.parametrize("indent", [None, 1])
def test_a_jsonl_file_may_contain_an_array(tmp_path, indent):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS, indent=indent))
    assert [value for _, value in read_rows(tmp_path / "rows.jsonl")] == ROWS


@pytest.mark.parametrize("first", ['[{"a": 1}]', '[{"a": 1}', "[1]", "["])
def test_a_list_as_the_first_line_costs_no_other_line(tmp_path, first):
    (tmp_path / "rows.jsonl").write_text("\n".join([first, *map(json.dumps, ROWS)]) + "\n")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [pair for pair in rows if pair[1] in ROWS] == list(enumerate(ROWS, 2))


def test_a_remote_source_is_read_like_a_local_one():
    import fsspec

    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    fsspec.filesystem("memory").pipe_file("bucket/rows.jsonl", text.encode())
    files = find_files(
        [SourceConfig(path="memory://bucket/*.jsonl"), SourceConfig(path="memory://bucket")]
    )
    assert [file.source for file in files] == [0, 1]
    rows = [row.value for chunk in cut_chunks(files[:1], 64) for row in read_chunk(chunk)]
    assert rows == ROWS


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memory://bucket/nothing.jsonl", "no file of a known type"),
        (
            "wat://bucket/rows.jsonl",
            r"data.sources.0.path=wat://bucket/rows.jsonl: wat:// cannot be read here",
        ),
    ],
)
def test_an_unreadable_remote_source_is_refused_in_one_line(path, message):
    with pytest.raises(UserError, match=message) as error:
        find_files([SourceConfig(path=path)])
    assert "\n" not in str(error.value)


def test_a_link_is_read_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "rows.jsonl").symlink_to("blob")
    (tmp_path / "recipe.yaml").write_text(
        "name: t\nmodel: {base: ORG/base}\ndata: {sources: [rows.jsonl]}\n"
    )
    (source,) = load_recipe(tmp_path / "recipe.yaml").data.sources
    (file,) = find_files([source])
    assert file.path == str(tmp_path / "rows.jsonl") and file.kind == "jsonl"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.jsonl", "a link to gone, which does not exist"),
        ("loop.jsonl", "a link to loop.jsonl, which does not exist"),
        ("pipe.jsonl", "not a regular file"),
        ("x-pipe*.jsonl", "no file matches this glob; did you mean .*pipe.jsonl"),
        ("text.*", "no file matches this glob; set a file"),
        ("books", r"the folder has no file of a known type \(.*\); it has a.xlsx, b.docx"),
        ("bytes", r"bytes/\\udcff.jsonl: the file's name is not UTF-8; rename the file"),
        ("saved", r"saved/part.arrow: cannot be read \(.*No such file"),
    ],
)
def test_a_path_without_rows_is_refused_with_its_cause(
    tmp_path: Path, path: str, message: str
) -> None:
    (tmp_path / "nowhere.jsonl").symlink_to("gone")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("books/b.docx", "books/a.xlsx", "bytes/\udcff.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "saved").mkdir()
    state = {"_data_files": [{"filename": "part.arrow"}]}
    (tmp_path / "saved/state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=message) as error:
        find_files([SourceConfig(path=str(tmp_path / path))])
    str(error.value).encode()


def test_a_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "rows.jsonl").touch()
    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(UserError, match=r"rows.jsonl: cannot be read \(.*Permission denied\)"):
        find_files([SourceConfig(path=str(tmp_path / "rows.jsonl"))])
