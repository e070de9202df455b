"""Delimiters are read from a header without doubts; columns without a name are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.data.row_files import read_rows, refusal_of, values_in

ROWS = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.txt", "rows", "rows.csv.gz"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_header_shows_the_delimiter(
    tmp_path: Path, name: str, delimiter: str, end: str
) -> None:
    lines = ("instruction,output", "a,b", "c,d")
    content = "".join(line.replace(",", delimiter) + end for line in lines)
    assert values_in(tmp_path / name, content) == ROWS
    assert [line for line, _ in read_rows(tmp_path / name)] == [2, 3]
    assert values_in(tmp_path / name, f"sep={delimiter}{end}{content}") == ROWS


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('"instruction";"output"\n"a; ""x"", y";"b\nc"\n', ('a; "x", y', "b\nc")),
        ("instruction;output\na, b, c;d\n", ("a, b, c", "d")),
        ("instruction\toutput\na;b, c\td|e\n", ("a;b, c", "d|e")),
        ('"sep=;"\ninstruction;output\na;b\n', ("a", "b")),
        ("\n\nSEP=;\n\ninstruction;output\na;b\n", ("a", "b")),
    ],
)
def test_quotes_and_other_delimiters_in_texts_do_not_matter(
    tmp_path: Path, content: str, expected: tuple[str, str]
) -> None:
    rows = values_in(tmp_path / "rows.csv", content)
    assert rows == [dict(zip(("instruction", "output"), expected, strict=True))]


def test_a_header_with_several_delimiters_is_split_as_its_rows_are(tmp_path: Path) -> None:
    content = "question; or task,answer|x\na,b\nc; d,e\n"
    assert values_in(tmp_path / "rows.csv", content)[0] == {
        "question; or task": "a",
        "answer|x": "b",
    }
    content = "a;b,c\nx;y,z\n"
    assert refusal_of(tmp_path / "rows.csv", content) == (
        'data.sources.0.path=rows.csv: its header may be split by ",", ";": set the source\'s '
        '`delimiter: ","` or `delimiter: ";"`'
    )
    assert values_in(tmp_path / "rows.csv", content, delimiter=";") == [{"a": "x", "b,c": "y,z"}]


def test_any_delimiter_can_be_set_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    content = "instruction:output\na:b\nc:d\n"
    assert values_in(tmp_path / "rows.csv", content, delimiter=":") == ROWS
    message = refusal_of(tmp_path / "rows.csv", "instruction,output\na,b\n", delimiter=";")
    assert message == (
        'data.sources.0.delimiter=";": the header of rows.csv has no such character, but ","'
    )


@pytest.mark.parametrize("name", ["notes.txt", "notes"])
def test_prose_is_no_table(tmp_path: Path, name: str) -> None:
    message = refusal_of(tmp_path / name, "Hello, world\nThis is, as text, different\nAnd so on\n")
    assert "unknown file type" in message and "neither JSON nor the header of a table" in message


def test_columns_without_a_name_are_left_out_and_must_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert values_in(path, "instruction,output,, \na,b,,\nc,d\n") == ROWS
    assert values_in(path, "instruction,,output\na,,b\nc, ,d\n") == ROWS
    assert values_in(path, ",instruction,output\n0,a,b\n1,c,d\n") == ROWS  # an index of pandas
    assert values_in(path, "instruction,output,\na,b,\nc,d, and more\n") == [
        ROWS[0],
        "field 3 is not empty, but its column has no name",
    ]
    assert values_in(path, "instruction,output\na,b,\n") == ["3 fields, the header has 2"]


def test_empty_rows_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction,output\n\na,b\n,\n,\nc,d\n,\n")
    assert read_rows(path) == [(3, ROWS[0]), (6, ROWS[1])]


def test_a_row_at_which_the_file_ends_says_so(tmp_path: Path) -> None:
    content = 'instruction,output\na,b\nc,"d'
    assert values_in(tmp_path / "rows.csv", content)[1] == (
        "not CSV: unexpected end of data; the file ends in this row: is it complete?"
    )
    assert values_in(tmp_path / "rows.csv", "instruction,output\na,b\nc")[1] == (
        "1 fields, the header has 2; the file ends in this row: is it complete?"
    )


@pytest.mark.parametrize(
    "lines",
    [
        ["Report of questions", "", "instruction,output", "a,b", "c,d"],
        ["Report of questions,,", "Created 2024,,", ",,", "instruction,output,", "a,b,", "c,d,"],
        ["Report,2024,,", "id,instruction,output,x", "1,a,b,2", "2,c,d,2"],
    ],
)
def test_a_title_above_the_header_is_named(tmp_path: Path, lines: list[str]) -> None:
    message = refusal_of(tmp_path / "rows.csv", "\n".join(lines) + "\n")
    title = lines[0].strip(",")
    assert f"its first line {title!r} names" in message
    assert "but most rows have more fields; delete the lines above the header" in message


@pytest.mark.parametrize("mark", ["^", "~", "\x01", "§"])
def test_a_rare_delimiter_is_proposed(tmp_path: Path, mark: str) -> None:
    content = "".join(f"{a}{mark}{b}\n" for a, b in (("instruction", "output"), "ab", "cd"))
    shown = json.dumps(mark)
    assert refusal_of(tmp_path / "rows.csv", content) == (
        f"data.sources.0.path=rows.csv: its header is one column, but {shown} seems to split it: "
        f"set the source's `delimiter: {shown}`"
    )
    assert values_in(tmp_path / "rows.csv", content, delimiter=mark) == ROWS


def test_a_table_of_one_column_is_read(tmp_path: Path) -> None:
    content = "Text (plain)\nHello, world\nA: b; c\n"
    assert values_in(tmp_path / "rows.csv", "text\nHello: you\nOne; two\n") == [
        {"text": "Hello: you"},
        {"text": "One; two"},
    ]
    assert values_in(tmp_path / "rows.tsv", content) == [
        {"Text (plain)": "Hello, world"},
        {"Text (plain)": "A: b; c"},
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ["instruction, output", "a, b", "c, d"],
        ['"instruction", "output"', '"a", "b"', '"c", "d"'],
        ["instruction , output ", "a, b", "c, d"],
        ["sep=,", "", "instruction, output", "a,b", '"c", "d"'],
    ],
)
def test_a_space_behind_the_delimiters_of_a_header_is_no_text(
    tmp_path: Path, lines: list[str]
) -> None:
    assert values_in(tmp_path / "rows.csv", "\n".join(lines) + "\n") == ROWS


def test_other_spaces_are_text(tmp_path: Path) -> None:
    content = "instruction,output\na, b\n c,d \n"
    assert [list(row.values()) for row in values_in(tmp_path / "rows.csv", content)] == [
        ["a", " b"],
        [" c", "d "],
    ]
