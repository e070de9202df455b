"""JSON arrays are streamed by element, and refused with the line where they do not parse."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.errors import UserError
from tests.unit.data.row_files import read_rows

ROWS = [
    {"instruction": "i 0", "input": "", "output": "o"},
    {"output": "o", "instruction": "i 1", "history": [{"instruction": 1}, {"output": 2}]},
    {"instruction": "i 2, {please}", "output": "a }, { b"},
    {"instruction": "i 3", "output": "o", "history": []},
]
LAYOUTS = {
    "one line": lambda rows: "[" + ", ".join(rows) + "]",
    "tight": lambda rows: "[" + ",".join(rows) + "]",
    "a line each": lambda rows: "[\n" + ",\n".join(rows) + "\n]\n",
    "two a line": lambda rows: f"[\n  {', '.join(rows[:2])},\n  {', '.join(rows[2:])}\n]",
    "comma first": lambda rows: "[" + "\n,".join(rows) + "]",
}  # fmt: skip

DAMAGES = {
    "cut": lambda text: text[: len(text) * 2 // 3],
    "cut late": lambda text: text[:-1],
    "cut early": lambda text: text[:5],
    "open quote": lambda text: text.replace('": "', '": ', 1),
    "unclosed quote": lambda text: text.replace('", "', ', "', 1),
    "no comma": lambda text: text.replace('", "', '" "', 1),
    "nonsense": lambda text: "nonsense",
    "single quotes": lambda text: text.replace('"', "'"),
    "raw newline": lambda text: text.replace('": "', '": "\n', 1),
    "no opening": lambda text: text[1:],
    "bracket": lambda text: "]" + text[:9],
    "nothing": lambda text: "",
}


def write_array(path: Path, elements: Sequence[str], layout: str = "a line each") -> Path:
    path.write_text(LAYOUTS[layout](list(elements)))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", range(4))
def test_an_array_that_does_not_parse_is_refused_with_element_line_and_text(
    tmp_path, layout, damage, place
):
    elements = [json.dumps(row) for row in ROWS]
    elements[place] = DAMAGES[damage](elements[place])
    path = write_array(tmp_path / "rows.json", elements, layout)
    with pytest.raises(json.JSONDecodeError) as plain:
        json.loads(path.read_text())
    pattern = (
        r"rows\.json:\d+: element \d+ of the JSON array, which begins in line \d+: .*, "
        r"(near ['\"].*['\"]|at the end of the file); fix the file, or write one row a line as"
    )
    with pytest.raises(UserError, match=pattern) as error:
        read_rows(path)
    message = str(error.value)
    assert "\n" not in message
    # A quote that is not closed can reach into the next element.
    assert f"element {place + 1} " in message or f"element {place} " in message
    assert f"rows.json:{plain.value.lineno}: " in message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_before_the_damage_are_read_in_every_layout(tmp_path, layout):
    path = write_array(tmp_path / "rows.json", [json.dumps(row) for row in ROWS], layout)
    assert [value for _, value in read_rows(path)] == ROWS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[",
            "rows.json:1: element 1 .* in line 1: Expecting value: .* cut off here, near '\\['",
        ),
        ('[{"a": 1},\n', "rows.json:2: element 2 .* in line 2: Expecting value"),
        ('[{"a": 1}', "rows.json:1: .*: the array has no end: the file is cut off here, near"),
        ('[{"a": 1} {"a": 2}]', "element 1 .* expected ',' or '\\]', near '.*{\"a\": 2}\\]'"),
        (
            '[{"a": 1}]\n[{"a": 2}]\n',
            "rows.json:2: element 1 .*: text follows the end of the array, near",
        ),
        ('[{"a": 1},]', "element 2 .*: Expecting value"),
        ("[[[" + "[" * 100_000, "element 1 .*: .*recursion"),
    ],
)
def test_an_array_without_a_proper_end_is_refused(tmp_path, text, reason):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_rows(tmp_path / "rows.json")


def test_an_empty_array_has_no_rows(tmp_path):
    for text in ("[]", " [ \n ] \n"):
        (tmp_path / "rows.json").write_text(text)
        assert read_rows(tmp_path / "rows.json") == []


def test_elements_that_are_valid_json_but_no_rows_cost_only_themselves(tmp_path):
    elements = ['{"a": 1, "a": 2}', '{"b": [NaN]}', '{"c": -Infinity}', "5", '"text"', '{"d": 1}']
    values = read_rows(write_array(tmp_path / "rows.json", elements))
    assert values.pop(1)[0] == 3  # NaN equals nothing
    assert values == [
        (2, "not JSON: the key 'a' occurs twice"),
        (4, {"c": -math.inf}),
        (5, 5),
        (6, "text"),
        (7, {"d": 1}),
    ]


def test_an_element_longer_than_the_limit_is_refused_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.data.read.json_window.MAX_ROW_BYTES", 1000)
    for size, place in ((1100, 0), (1100, 11), (9000, 20), (40_000, 39)):
        rows: list[Any] = [{"instruction": f"i {i}", "output": "o"} for i in range(40)]
        rows[7]["output"] = "x" * 950
        rows[place]["output"] = "x" * size
        path = write_array(tmp_path / "rows.json", [json.dumps(row) for row in rows], "tight")
        reason = f"element {place + 1} .* no end within the limit of 1000 characters, near"
        with pytest.raises(UserError, match=reason):
            read_rows(path)


def test_an_array_longer_than_its_window_is_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.data.read.json_window.MAX_ROW_BYTES", 100)
    rows = [{"n": i, "text": "é" * (i % 40)} for i in range(500)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    assert [value["n"] for _, value in read_rows(path)] == list(range(500))
    assert read_rows(path)[7][0] == 2 + 7 * 4
