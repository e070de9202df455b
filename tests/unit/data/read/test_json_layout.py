"""JSON is read however it is laid out, or refused in one line that names where its rows are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.errors import UserError
from tests.unit.data.row_files import read_rows, refusal_of, values_in

ROWS: list[Any] = [{"instruction": f"Say {i} }}", "output": f"w {i}"} for i in range(4)]
TALK = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
TEXTS = [json.dumps(row) for row in ROWS]
PRETTY = [json.dumps(row, indent=2) for row in ROWS]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.txt", "rows"])
@pytest.mark.parametrize(
    "content",
    [
        "\n".join(TEXTS),
        "\r\n\r\n".join(TEXTS),
        "\r".join(TEXTS),
        "\n".join(PRETTY),
        "\n\n".join(PRETTY) + "\n",
        "".join(TEXTS),
        " ".join(TEXTS),
        ",\n".join(TEXTS),
        ",\n".join(TEXTS) + ",\n",
        ",\n".join(PRETTY),
        "\n,".join(TEXTS),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1", "rows": ROWS, "n": 4, "empty": []}, indent=1),
        json.dumps({f"id{i}": row for i, row in enumerate(ROWS)}, indent=1),
        json.dumps({"n": 4, "rows": {f"id{i}": row for i, row in enumerate(ROWS)}}),
    ],
)
def test_the_content_and_not_the_name_decides_the_layout(
    tmp_path: Path, name: str, content: str
) -> None:
    assert values_in(tmp_path / name, content) == ROWS


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": TALK, "tools": [{"name": "f"}]},
        {"question": "a", "answer": "b", "references": [{"title": "t"}]},
        {"id": 5, "text": "a"},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_with_the_keys_of_a_row_is_a_row(
    tmp_path: Path, row: dict[str, Any], indent: int | None
) -> None:
    assert values_in(tmp_path / "rows.json", json.dumps(row, indent=indent)) == [row]


def test_an_object_with_the_mapped_columns_is_a_row(tmp_path: Path) -> None:
    row = {"Frage": "a", "Antwort": "b", "Quellen": [{"title": "t"}]}
    columns = {"prompt": "Frage", "completion": "Antwort"}
    assert values_in(tmp_path / "rows.json", json.dumps(row), columns=columns) == [row]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"train": ROWS, "test": ROWS[:1]}, "train"),
        ({"result": {"rows": ROWS}}, "result.rows"),
        ({"a": {"b.c": ROWS, "d": [1]}}, "a.b.c"),
        ({"rows": {f"id{i}": row for i, row in enumerate(ROWS)}}, "rows"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_field_names_the_rows(tmp_path: Path, value: Any, field: str, indent: int | None) -> None:
    content = json.dumps(value, indent=indent)
    assert values_in(tmp_path / "rows.json", content, field=field) == ROWS


def test_rows_in_several_places_ask_for_the_key(tmp_path: Path) -> None:
    content = json.dumps({"train": ROWS, "test": ROWS})
    assert refusal_of(tmp_path / "rows.json", content) == (
        "data.sources.0.path=rows.json: is one JSON object with rows in train, test; set the "
        "source's `field: train` or `field: test`"
    )
    message = refusal_of(tmp_path / "rows.json", json.dumps({"result": {"rows": ROWS}}))
    assert message.endswith("rows in result.rows; set the source's `field: result.rows`")


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ({"data": ROWS}, "rows", "rows.json has no such key; rows seem to be in data"),
        ({"a": 1, "b": {}}, "rows", "rows.json has no such key; it has the keys a, b"),
        ({"a": {"b": ROWS}}, "a.c", "rows.json has no such key; rows seem to be in a.b"),
        ({"data": 5}, "data", "in rows.json this is int, not a list of rows"),
    ],
)
def test_a_field_that_is_not_there_is_refused(
    tmp_path: Path, value: Any, field: str, reason: str
) -> None:
    message = refusal_of(tmp_path / "rows.json", json.dumps(value), field=field)
    assert message == f"data.sources.0.field={field}: {reason}"


def test_a_large_object_is_streamed_from_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.data.read.json_window.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("pipelines.data.read.file_type.MAX_ROW_BYTES", 2000)
    monkeypatch.setattr("pipelines.data.read.file_type._HEAD_BYTES", 100)
    rows = [{"question": f"q {i}", "answer": "é" * (i % 40)} for i in range(2000)]
    value = {"info": {"a": [1, {"b": "]"}]}, "skipped": rows, "inner": {"data": rows}, "n": 1}
    content = json.dumps(value, ensure_ascii=False)
    assert refusal_of(tmp_path / "rows.json", content).endswith(
        "rows seem to be in `skipped`: set the source's `field: skipped`"
    )
    assert values_in(tmp_path / "rows.json", content, field="inner.data") == rows
    for cut in (300, len(content) // 3, len(content) - 1):
        (tmp_path / "rows.json").write_text(content[:cut])
        with pytest.raises(UserError, match=r"rows.json:1: .*the file is cut off here"):
            read_rows(tmp_path / "rows.json", field="inner.data")
    content = json.dumps({"n": {"o": 1}, "inner": {"p": [], "data": rows}})
    message = refusal_of(tmp_path / "rows.json", content)
    assert message.endswith("rows seem to be in `inner.data`: set the source's `field: inner.data`")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", "instruction,output\na,b\n", "a.json:1: holds no JSON, near 'instruc.*it .csv"),
        ("a.jsonl", '"instruction","output"\n"a","b"\n', "holds no JSON"),
        ("a.json", '\n{"a": 1,\n "b" 2}\n', r"a.json:3: not JSON: Expecting ':' delimiter, near"),
        ("a.json", '{"data": [{"a": 1}, {"a"', "not JSON: .*: the file is cut off here, near"),
        ("a.jsonl", str(ROWS[0]) + "\n" + str(ROWS[1]), "a.jsonl:1: not JSON: .*json.dumps"),
        ("a.json", '[{"a": 1},]', "Expecting value: delete the comma before the end, near"),
        ("a.json", '[{"a": 1}, {"a', "element 2 .*: the file is cut off here, near"),
        ("a.json", '{"a": 1},\n{"a": 2}\n]', "a.json:3: .*a ']' without its beginning, near"),
        ("a.json", json.dumps({"x": ["a"], "y": ["b"]}), "object of columns .*records"),
        ("a.json", json.dumps({"x": {"0": "a"}, "y": {"0": "b"}}), "object of columns"),
        ("state.json", '{"_data_files": []}', "describes a dataset and has no rows; name its fol"),
        ("a.json", "[]", "no row in it"),
        ("a.jsonl", "\n \n", "no row in it"),
        ("a.jsonl", "[1]\n[2]\n", "none of the first 2 rows can be used: a row is an object"),
        ("a.jsonl", '{"a": ' * 100_000, "its only row cannot be used: not JSON: .*recursion"),
    ],
)
def test_what_is_no_json_of_rows_is_refused(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refusal_of(tmp_path / name, content))


def test_a_first_value_above_the_limit_costs_its_line_or_names_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.data.read.file_type.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("pipelines.data.read.rows.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("pipelines.data.read.file_type._HEAD_BYTES", 100)
    long = json.dumps({"instruction": "a" * 5000, "output": "b"})
    path = tmp_path / "rows.jsonl"
    error, *rows = values_in(path, "\n".join([long, *TEXTS]) + "\n")
    assert error.startswith("a line of 5035 bytes, the limit is 1000") and rows == ROWS
    message = refusal_of(tmp_path / "rows.json", json.dumps({"info": "a" * 5000, "data": ROWS}))
    assert (
        "its first value has no end within 1,000 characters; if it is an object with a" in message
    )
    assert message.endswith("set the source's `field` to the key of the list")


def test_a_broken_first_line_costs_only_itself(tmp_path: Path) -> None:
    for first in ('{"instruction": "a', "# a comment", '{"a": 1} and more', '{"a": 1', "[", "{"):
        values = values_in(tmp_path / "rows.jsonl", "\n".join([first, *TEXTS]))
        assert values[1:] == ROWS and values[0].startswith("not JSON"), first


def test_a_last_line_that_is_cut_says_so(tmp_path: Path) -> None:
    values = values_in(tmp_path / "rows.jsonl", "\n".join(TEXTS)[:-9])
    assert values[:-1] == ROWS[:-1]
    assert values[-1].startswith("not JSON: Unterminated string starting")
    assert values[-1].endswith("; the file ends in this line: is it complete?")


def test_json_in_a_csv_file_is_json(tmp_path: Path) -> None:
    assert values_in(tmp_path / "rows.csv", "\n".join(TEXTS)) == ROWS
    assert values_in(tmp_path / "rows.csv", json.dumps(ROWS)) == ROWS
