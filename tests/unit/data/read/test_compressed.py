"""Compressed sources give the rows in them with their lines; a damaged file is one error."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.read.rows import read_chunk
from pipelines.sources.hashes import FileHashes
from pipelines.sources.source_files import find_files

ROWS: list[dict[str, Any]] = [{"prompt": f"a, {i}", "completion": "b\nc\td é"} for i in range(7)]
ENDS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda text: pa.compress(text, "zstd", asbytes=True),
}


def text_of(suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(ROWS, indent=1)
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS)
    out = io.StringIO()
    writer = csv.DictWriter(out, ROWS[0], delimiter="\t" if suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


def squeezed(path: Path, text: str) -> Path:
    path.write_bytes(ENDS[path.suffix](text.encode()))
    return path


def read(path: Path) -> list[tuple[int, Any]]:
    """As row_files.read_rows; a compressed file is one chunk, however small chunks may be."""
    files = find_files([SourceConfig(path=str(path))])
    (chunk,) = cut_chunks(files, 1)
    assert [chunk] == cut_chunks(files)
    return [(row.number + 1, row.error or row.value) for row in read_chunk(chunk)]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("end", ENDS)
def test_a_compressed_file_gives_the_rows_in_it(tmp_path, suffix, end):
    path = squeezed(tmp_path / f"rows{suffix}{end}", text_of(suffix))
    assert [value for _, value in read(path)] == ROWS
    assert (
        FileHashes(tmp_path / "hashes").sha256(path)
        == hashlib.sha256(path.read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_a_damaged_compressed_file_is_refused_in_one_line(tmp_path, suffix, end):
    rows = [
        {"prompt": hashlib.sha256(b"%d" % i).hexdigest(), "completion": "b"} for i in range(4000)
    ]
    text = (
        json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    )
    path = squeezed(tmp_path / f"rows{suffix}{end}", text)
    intact = path.read_bytes()
    for damaged in (intact[:9], intact[: len(intact) // 2], intact[:-3]):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=rf"rows{suffix}{end}: damaged \(.*; fix or replace the file$"
        ) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_lines_of_a_compressed_file_are_numbered(tmp_path):
    path = squeezed(tmp_path / "rows.jsonl.gz", '{"prompt": "a", "completion": "b"}\n\nbad\n')
    assert [line for line, _ in read(path)] == [1, 3]
    path.write_bytes(path.read_bytes() * 2)  # members of one file
    assert [line for line, _ in read(path)] == [1, 3, 4, 6]


def test_a_compressed_table_is_refused(tmp_path):
    (tmp_path / "rows.parquet.gz").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"unknown file type .parquet.gz; valid: .json, .*; text also with .gz"
    ):
        find_files([SourceConfig(path=str(tmp_path / "rows.parquet.gz"))])
