"""The first bytes show the type of a file; files without rows and keys without use are refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.read.chunks import cut_chunks
from pipelines.sources.source_files import find_files
from tests.unit.data.row_files import refusal_of, values_in

ROWS = [{"instruction": f"Say {i}", "output": f"w {i}"} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out)
    return out.getvalue()


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x" * 50)
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows", "rows.txt", "rows.jsonl.gz"])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_compression_is_seen_without_its_ending_and_also_twice(
    tmp_path: Path, name: str, compress: Any
) -> None:
    assert values_in(tmp_path / name, compress(LINES)) == ROWS
    assert values_in(tmp_path / name, gzip.compress(compress(LINES))) == ROWS


def test_an_ending_without_its_compression_does_no_harm(tmp_path: Path) -> None:
    assert values_in(tmp_path / "rows.jsonl.gz", LINES) == ROWS
    assert values_in(tmp_path / "rows.csv.xz", "instruction,output\na,b\n")[0]["output"] == "b"


def test_a_table_is_seen_under_any_name(tmp_path: Path) -> None:
    assert values_in(tmp_path / "rows.json", parquet()) == ROWS
    assert values_in(tmp_path / "rows", parquet()) == ROWS
    assert values_in(tmp_path / "rows.arrow", parquet()) == ROWS
    message = refusal_of(tmp_path / "rows.jsonl.gz", gzip.compress(parquet()))
    assert message.endswith("a compressed parquet file; unpack it")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.json.gz", "rows"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>", "is a web page (HTML)"),
        ("\ufeff<HTML lang=en>".encode(), "is a web page (HTML)"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is XML, not rows"),
        (b"../../.git/annex/objects/x1/y2/SHA256E-s1--a.json", "git-annex pointer"),
        (
            b"| q | a |\n|---|:-:|\n| b | c |\n",
            "is a table of Markdown or of a database's terminal",
        ),
        (
            b" q | a \r\n---+---\r\n b | c \r\n",
            "is a table of Markdown or of a database's terminal",
        ),
        (zipped("a.json"), "is a ZIP archive, not a file of rows; unpack it"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "is an Excel workbook"),
        (zipped("[Content_Types].xml"), "is an office document"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "is an old Excel or Word file"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive"),
        (b"%PDF-1.7\n%\xe2\xe3", "is a PDF"),
        (b"SQLite format 3\0" + bytes(99), "is an SQLite database"),
        (b"\x80\x04\x95\x10\0\0\0", "is a Python pickle"),
        (bytes(5000), "begins with 5,000 zero bytes"),
    ],
)
def test_a_file_without_rows_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    message = refusal_of(tmp_path / name, content)
    assert message.startswith(f"data.sources.0.path={name}: ") and reason in message


def test_names_that_no_file_of_rows_has_are_refused_with_advice(tmp_path: Path) -> None:
    for name, advice in [
        ("a.xlsx", "save the sheet as CSV"),
        ("a.zip", "unpack it"),
        ("a.7z", "unp"),
    ]:
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=rf"unknown file type .*; {advice}.*; valid: .json"):
            find_files([SourceConfig(path=str(tmp_path / name))])


def test_an_empty_file_among_others_has_no_rows_and_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert refusal_of(tmp_path / "a.jsonl", b"").endswith("a.jsonl: no row in it")
    (tmp_path / "b.jsonl").write_bytes(LINES)
    chunks = cut_chunks(find_files([SourceConfig(path=str(tmp_path))]))
    assert [Path(chunk.path).name for chunk in chunks] == ["b.jsonl"]


@pytest.mark.parametrize(
    ("name", "keys", "reason"),
    [
        (
            "a.jsonl",
            {"delimiter": ";"},
            "delimiter=;: does nothing: no file of the source is a CSV",
        ),
        (
            "a.jsonl",
            {"field": "data"},
            "field=data: does nothing: no file of it is one JSON object",
        ),
        ("a.csv", {"field": "data"}, "field=data: does nothing"),
        ("a.parquet", {"field": "data"}, "field=data: does nothing"),
        ("a.parquet", {"encoding": "utf-8"}, "encoding=utf-8: does nothing: Parquet and Arrow"),
    ],
)
def test_a_key_that_does_nothing_is_refused(
    tmp_path: Path, name: str, keys: dict[str, str], reason: str
) -> None:
    contents = {"a.jsonl": LINES, "a.csv": b"a,b\n1,2\n", "a.parquet": parquet()}
    message = refusal_of(tmp_path / name, contents[name], **keys)
    assert message.startswith(f"data.sources.0.{reason}") and message.endswith("; delete it")


def test_a_key_counts_if_one_file_of_the_source_needs_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a;b,c\n1;2\n")
    (tmp_path / "b.jsonl").write_bytes(LINES)
    source = SourceConfig(path=str(tmp_path), delimiter=";")
    assert [chunk.kind for chunk in cut_chunks(find_files([source]))] == ["csv", "jsonl"]
