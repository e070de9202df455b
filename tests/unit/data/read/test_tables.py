"""Values of tables that no row can have cost their row; a damaged table is refused."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.read.rows import read_chunk
from pipelines.sources.source_files import find_files
from tests.unit.data.row_files import read_rows, write_rows


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_dates_and_bytes_of_a_table_are_refused_as_tool_arguments(tmp_path, suffix):

    calls = [
        {
            "function": {
                "name": "f",
                "arguments": {"at": datetime.datetime(2026, 1, 1), "raw": b"\xff"},
            }
        }
    ]
    talk = [
        {"role": "user", "content": "a", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    path = write_rows(tmp_path / f"rows{suffix}", [{"messages": talk}, {"messages": talk[:1]}])
    (_, first), _ = read_rows(path)
    with pytest.raises(
        RowError,
        match=r"messages\[1\]: the arguments of a tool call: a value of type datetime is not JSON",
    ):
        to_conversation(first)


def test_a_table_value_without_a_python_form_costs_its_row(tmp_path):
    far = pa.array([0, 2**62, 0], pa.int64()).cast(pa.timestamp("s"))
    path = tmp_path / "rows.parquet"
    with pa.ipc.new_file(tmp_path / "rows.arrow", pa.schema({"at": pa.timestamp("s")})) as out:
        out.write_table(pa.table({"at": far}))
    path = tmp_path / "rows.arrow"
    (file,) = find_files([SourceConfig(path=str(path))])
    rows = [row for chunk in cut_chunks([file]) for row in read_chunk(chunk)]
    assert [bool(row.error) for row in rows] == [False, True, False] and "cannot be read" in (
        rows[1].error or ""
    )


def test_a_damaged_table_is_refused(tmp_path):
    path = write_rows(
        tmp_path / "rows.parquet", [{"prompt": "a" * i, "completion": str(i)} for i in range(500)]
    )
    content = bytearray(path.read_bytes())
    content[40:400] = b"\xff" * 360
    path.write_bytes(content)
    with pytest.raises(UserError, match="rows.parquet: damaged"):
        read_rows(path)
