"""Files give the same rows and lines however they are cut into chunks."""

from __future__ import annotations

import pytest

from pipelines.config.schema import SourceConfig
from pipelines.data.read.chunks import cut_chunks, lines_between
from pipelines.data.read.rows import read_chunk
from pipelines.sources.source_files import find_files
from tests.unit.data.row_files import ROWS, write_rows


@pytest.mark.parametrize(
    "suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".feather"]
)
@pytest.mark.parametrize("chunk_bytes", [1, 40, 1 << 20])
def test_every_file_type_gives_the_same_rows_however_it_is_cut(tmp_path, suffix, chunk_bytes):
    path = write_rows(tmp_path / f"rows{suffix}")
    chunks = cut_chunks(find_files([SourceConfig(path=str(path))]), chunk_bytes)
    rows = [row for chunk in chunks for row in read_chunk(chunk)]
    assert [row.value for row in rows] == ROWS and not any(row.error for row in rows)


def test_lines_are_numbered_over_the_whole_file(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl")
    for chunk_bytes in (1, 37, 100, 1 << 20):
        chunks = cut_chunks(find_files([SourceConfig(path=str(path))]), chunk_bytes)
        lines = [
            lines_between(chunk.path, 0, chunk.first) + row.number
            for chunk in chunks
            for row in read_chunk(chunk)
        ]
        assert lines == list(range(7))
