"""Files of rows for tests: written in every format, and read back row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.first_look import check_first_rows
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.read.rows import read_chunk
from pipelines.sources.source_files import find_files

ROWS = [
    {"instruction": f"Say {i}, please", "input": "", "output": f'It is "{i}",\nfriend é'}
    for i in range(7)
]


def write_rows(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    """Write rows in the format of the file's suffix; tables in parts of three rows."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as out:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(out, rows[0].keys(), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=3)
    else:
        table = pa.Table.from_pylist(list(rows))
        new = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
        with new(path, table.schema) as out:
            out.write_table(table, max_chunksize=3)
    return path


def read_rows(path: Path, **keys: Any) -> list[tuple[int, Any]]:
    """Line and value of each row of a file; the reason in place of a value that cannot be read.

    `keys` are those of the file's source.
    """
    (file,) = find_files([SourceConfig(path=str(path), **keys)])
    rows = [row for chunk in cut_chunks([file]) for row in read_chunk(chunk)]
    assert all(row.text for row in rows if row.error)
    assert max((len(row.text) for row in rows), default=0) <= 2000
    return [(row.number + 1, row.error or row.value) for row in rows]


def values_in(path: Path, content: str | bytes, **keys: Any) -> list[Any]:
    """The rows of a new file with this content; the reason in place of one that cannot be read."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [value for _, value in read_rows(path, **keys)]


def refusal_of(path: Path, content: str | bytes, **keys: Any) -> str:
    """The one line in which the first look refuses a new file with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as error:
        check_first_rows(find_files([SourceConfig(path=str(path), **keys)]), 0.01)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), path.name)
