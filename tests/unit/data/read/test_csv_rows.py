"""A broken CSV line costs its own row and moves no line number."""

from __future__ import annotations

import pytest

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.convert.row_error import RowError
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.read.rows import read_chunk
from pipelines.data.source_rows import conversation_of
from pipelines.sources.source_files import find_files
from tests.unit.data.row_files import read_rows


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        (['a,"b', "c,d", 'e,"f"'], {2: "not CSV"}),  # the next quote closes it
        (["a,b", 'c,"d', "e,f"], {3: "not CSV: unexpected end of data"}),  # none does
        (['"a","b', '"c","d"', '"e","f"'], {2: "not CSV"}),
        (["a,b", "c,d,e", 'f,"g\nh"', "i"], {3: "3 fields, the header has 2", 6: "1 fields"}),
    ],
)
def test_an_unclosed_quote_in_a_csv_file_costs_its_line(tmp_path, lines, bad):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["prompt,completion", *lines]) + "\n")
    rows = dict(read_rows(path))
    assert {
        line: reason for line, reason in rows.items() if isinstance(reason, str)
    }.keys() == bad.keys()
    assert all(reason in rows[line] for line, reason in bad.items())
    assert len([row for row in rows.values() if isinstance(row, dict)]) == len(lines) - len(bad)


def test_a_long_csv_field_is_read_and_one_above_the_limit_costs_its_row(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text(f'prompt,completion\na,"{"x" * 300_000}"\nb,"{"y" * (9 << 20)}"\nc,d\n')
    rows = read_rows(path)
    assert [line for line, _ in rows][:2] == [2, 3] and rows[0][1]["completion"] == "x" * 300_000
    assert "characters in one row" in rows[1][1] and rows[-1][1] == {
        "prompt": "c",
        "completion": "d",
    }


@pytest.mark.parametrize("header", ['prompt,"completion', "prompt,prompt"])
def test_an_invalid_csv_header_is_refused(tmp_path, header):
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\na,b\n")
    with pytest.raises(UserError, match="header"):
        read_rows(path)


def test_a_csv_line_above_the_limit_costs_its_rows_and_moves_no_line(tmp_path, monkeypatch):
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
    rows = read_rows(tmp_path / "rows.csv")
    assert [line for line, _ in rows] == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    prompts = {line: value["prompt"] for line, value in rows if isinstance(value, dict)}
    assert prompts == {2: "a", 4: "d", 7: "h", 10: "l"}


def test_blank_lines_before_a_csv_header_are_skipped(tmp_path):
    (tmp_path / "rows.csv").write_text("\n\nprompt,completion\na,b\n")
    assert read_rows(tmp_path / "rows.csv") == [(4, {"prompt": "a", "completion": "b"})]


def test_a_stray_byte_in_a_table_costs_its_row_and_names_the_key(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"instruction,output\na,b\nc,d\xe9\n")
    source = SourceConfig(path=str(tmp_path / "rows.csv"), encoding="utf-8")
    (chunk,) = cut_chunks(find_files([source]))
    good, bad = read_chunk(chunk)
    assert conversation_of(good, source, False).turns[1].content == "b"
    with pytest.raises(RowError, match=r"the byte 0xe9 \(is the source's `encoding` another\?\)"):
        conversation_of(bad, source, False)
