"""Files of rows as other programs write them are read, or refused in one line with its cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jobs.verbs.prepare import prepare
from pipelines.config.recipe import parse_recipe
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.data.stage import prepare_step
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.storage import Store
from tests.stages import serial_tokenize
from tests.unit.data.row_files import read_rows, refusal_of, values_in

pytestmark = pytest.mark.trials

WORDS = [{"instruction": f"Say {i}", "output": f"word é {i}"} for i in range(4)]
COMMAS = [{"instruction": f"Say {i}", "input": "", "output": f"word, {i}"} for i in range(4)]
PLAIN = [{"instruction": f"Say {i}", "output": f"w {i}"} for i in range(4)]
LFS = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345678\n"
)


def table(rows: list[dict[str, str]], delimiter: str, end: str = "\n") -> str:
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    return "".join(delimiter.join(line) + end for line in lines)


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_utf16_is_read_by_its_byte_order_mark(tmp_path: Path) -> None:
    content = table(WORDS, ",", "\r\n").encode("utf-16")
    assert values_in(tmp_path / "rows.csv", content) == WORDS
    assert read_rows(tmp_path / "rows.csv")[0][0] == 2
    assert values_in(tmp_path / "rows.jsonl", lines(WORDS).encode("utf-16")) == WORDS


def test_windows_1252_is_refused_with_the_key_and_read_with_it(tmp_path: Path) -> None:
    rows = [{**row, "output": f"“{row['output']}”"} for row in WORDS]
    content = table(rows, ",").encode("windows-1252")
    assert refusal_of(tmp_path / "rows.csv", content) == (
        "data.sources.0.path=rows.csv: not UTF-8, but perhaps windows-1252: the byte 0x93 at "
        "offset 25 (line 2); set the source's `encoding: windows-1252` (or utf-8, to reject such "
        "rows) or save the file as UTF-8"
    )
    assert values_in(tmp_path / "rows.csv", content, encoding="windows-1252") == rows


def test_tabs_and_semicolons_in_a_csv_file_are_read(tmp_path: Path) -> None:
    assert values_in(tmp_path / "rows.csv", table(COMMAS, "\t")) == COMMAS
    assert values_in(tmp_path / "rows.csv", table(COMMAS, ";")) == COMMAS


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_line_sep_of_excel_is_honoured_and_is_no_row(tmp_path: Path, delimiter: str) -> None:
    content = f"sep={delimiter}\n{table(PLAIN, delimiter)}"
    assert values_in(tmp_path / "rows.csv", content) == PLAIN
    assert read_rows(tmp_path / "rows.csv")[0][0] == 3


def test_the_rows_in_a_json_object_are_read_with_their_lines(tmp_path: Path) -> None:
    content = json.dumps({"version": "1", "data": PLAIN}, indent=2)
    assert values_in(tmp_path / "rows.json", content) == PLAIN
    assert [line for line, _ in read_rows(tmp_path / "rows.json")] == [4, 8, 12, 16]


def test_a_row_that_is_a_file_of_its_own_is_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}]
    row = {"messages": turns}
    assert values_in(tmp_path / "rows.json", json.dumps(row, indent=2)) == [row]


def test_nan_in_a_field_without_use_costs_nothing(tmp_path: Path, pocket_base: str) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"instruction": "a", "output": "b", "score": NaN}\n'
        '{"instruction": "c", "output": "d", "score": -Infinity}\n'
        '{"instruction": "e", "output": "f", "score": 0.5}\n'
    )
    data = {"sources": [str(tmp_path / "rows.jsonl")], "row_tokens": 64, "heldout_share": 0}
    recipe = parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": data})
    step = prepare_step(Inputs(recipe), serial_tokenize)
    counts = Runner(Store(tmp_path / "store"), SILENT).run(step).counts
    assert (counts["read"], counts["train"], counts["rejected"]) == (3, 3, 0)


def test_nan_as_a_text_is_refused(tmp_path: Path) -> None:
    message = refusal_of(tmp_path / "rows.jsonl", '{"instruction": "a", "output": NaN}\n')
    assert "its only row cannot be used: output: expected text, this is float" in message


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "a.json.gz"]
)
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    assert refusal_of(tmp_path / name, LFS) == (
        f"data.sources.0.path={name}: {name} is a Git LFS pointer, not the data; run `git lfs "
        "pull` in the repository that it comes from"
    )


def test_excels_empty_columns_are_left_out(tmp_path: Path) -> None:
    content = "".join(f"{line},,\n" for line in table(PLAIN, ",").splitlines())
    assert values_in(tmp_path / "rows.csv", content) == PLAIN


def test_a_command_refuses_such_a_file_before_ray_starts(
    tmp_path: Path, pocket_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("jobs.session.ray_session", never)
    app = typer.Typer()
    app.command()(prepare)
    (tmp_path / "rows.jsonl").write_text(LFS)
    recipe = {"name": "t", "model": {"base": pocket_base}, "data": {"sources": ["rows.jsonl"]}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    arguments = [str(tmp_path / "recipe.yaml"), "--store", str(tmp_path / "store")]
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
