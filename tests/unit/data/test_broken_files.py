"""Reading goes on behind what is broken: one element of an array or one line of a CSV file costs itself alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.config.schema import SourceConfig
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.read.rows import read_chunk
from pipelines.sources.files import find_files


def read(path) -> list[tuple[int, Any]]:
    """Of each row of a file its line and its value, or why it cannot be read."""
    (file,) = find_files([SourceConfig(path=str(path))])
    rows = [row for chunk in cut_chunks([file]) for row in read_chunk(chunk)]
    return [(row.number + 1, row.error or row.value) for row in rows]


def alpaca(number: int, *keys: str) -> dict[str, Any]:
    return {key: f"{key} {number}" for key in keys}


def talk(number: int) -> dict[str, Any]:
    """A row whose inner lists hold objects that open with a key of the row."""
    calls = [
        {"id": f"c{i}", "function": {"name": "f", "arguments": '{"a": [1, {"id": 2}, {"id": 3}]}'}}
        for i in "ab"
    ]
    turns = [
        {"id": 1, "role": "user", "content": f"Say {number}, {{please}}"},
        {"id": 2, "role": "assistant", "content": "", "tool_calls": calls},
        {"id": 3, "role": "assistant", "content": "a }, { b"},
    ]
    return {"id": number, "messages": turns} if number % 2 else {"messages": turns, "id": number}


def question(number: int) -> dict[str, Any]:
    """A row that holds objects like itself."""
    inner = [{"question": f"why {i}?", "answer": "so"} for i in range(3)]
    return {"question": f"q {number}", "answer": "a"} | ({"followups": inner} if number % 3 else {})


MIXED = [
    alpaca(0, "instruction", "input", "output"),
    alpaca(1, "output", "instruction", "input"),
    alpaca(2, "input", "instruction", "output"),
    alpaca(3, "instruction", "output"),
    alpaca(4, "output", "instruction"),
    alpaca(5, "instruction", "input", "output"),
]
LAYOUTS = {
    "one line": lambda rows: "[" + ", ".join(rows) + "]",
    "tight": lambda rows: "[" + ",".join(rows) + "]",
    "a line each": lambda rows: "[\n" + ",\n".join(rows) + "\n]\n",
    "two a line": lambda rows: "[\n  " + "".join(r + (",\n  " if i % 2 else ", ") for i, r in enumerate(rows[:-1])) + rows[-1] + "\n]",
    "comma first": lambda rows: "[" + "\n,".join(rows) + "]",
}  # fmt: skip
DAMAGES = {
    "cut": lambda text: text[: len(text) * 2 // 3],
    "cut late": lambda text: text[:-1],
    "cut early": lambda text: text[:5],
    "open quote": lambda text: text.replace('": "', '": ', 1),
    "unclosed quote": lambda text: (
        text[:-2] + "}" if text.endswith('"}') else text.replace('", ', ", ", 1)
    ),
    "no number": lambda text: text.replace(": ", ": NaN, ", 1),
    "no comma": lambda text: text.replace(", ", " ", 1),
    "nonsense": lambda text: "nonsense",
    "single quotes": lambda text: text.replace('"', "'"),
    "raw newline": lambda text: text.replace('": "', '": "\n', 1),
    "twice": lambda text: "{" + text[1:].split(",")[0] + "," + text[1:],
    "no opening": lambda text: text[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", [0, 1, 3, 4])
@pytest.mark.parametrize("rows", [MIXED, [talk(i) for i in range(6)], [question(i) for i in range(6)]], ids=["alpaca", "talks", "questions"])  # fmt: skip
def test_a_broken_element_costs_itself_whatever_the_others_open_with(
    tmp_path, layout, damage, place, rows
):
    texts = [json.dumps(row) for row in rows]
    texts[place] = DAMAGES[damage](texts[place])
    (tmp_path / "rows.json").write_text(LAYOUTS[layout](texts))
    values = [value for _, value in read(tmp_path / "rows.json")]
    found = [value for value in values if isinstance(value, dict)]
    assert found == [row for i, row in enumerate(rows) if i != place]
    assert len(values) - len(found) == 1, values


def test_an_element_longer_than_a_row_may_be_costs_itself_wherever_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.data.read.json_array.MAX_ROW_BYTES", 1000)
    rows: list[Any] = [alpaca(i, "instruction", "output") for i in range(40)]
    for size, places in ((950, (7,)), (1100, (0, 11)), (9000, (20,)), (40_000, (30,))):
        for place in places:
            rows[place]["output"] = "x" * size
    (tmp_path / "rows.json").write_text("[" + ",\n".join(map(json.dumps, rows)) + "]")
    found = read(tmp_path / "rows.json")
    assert [line for line, _ in found] == list(range(1, 41))
    assert [line - 1 for line, value in found if isinstance(value, str)] == [0, 11, 20, 30]
    assert "an element of 1147 characters, the limit is 1000" in found[11][1]
    assert all(value == rows[line - 1] for line, value in found if isinstance(value, dict))


def test_a_csv_line_longer_than_a_row_may_be_costs_its_rows_and_moves_no_line(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("pipelines.data.read.csv_rows.MAX_ROW_BYTES", 100)
    long = "x" * 99  # with what is before it just above the limit
    lines = [
        "a,b",
        f"c,{long}",
        "d,e",
        '"f',
        f'g",{long * 5}',
        "h,i",
        f"{long}x",
        f'k,"{long}"',
        "l,m",
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["prompt,completion", *lines]) + "\n")
    found = read(tmp_path / "rows.csv")
    assert [line for line, _ in found] == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    kept = {line: value["prompt"] for line, value in found if isinstance(value, dict)}
    assert kept == {2: "a", 4: "d", 7: "h", 10: "l"}


def test_blank_lines_before_a_csv_header_are_none(tmp_path):
    (tmp_path / "rows.csv").write_text("\n\nprompt,completion\na,b\n")
    assert read(tmp_path / "rows.csv") == [(4, {"prompt": "a", "completion": "b"})]
