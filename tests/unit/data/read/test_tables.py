"""Values of tables that no row can have cost their row; a damaged table is refused."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


def table_values(path, table: pa.Table):
    pq.write_table(table, path)
    return [value for _, value in read_rows(path)]


def test_every_arrow_type_of_text_is_text(tmp_path):
    texts = ["a", "é", None]
    types = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    for kind in [*types, pa.binary(), pa.large_binary()]:
        column = pa.array(texts, pa.string()).cast(kind)
        assert table_values(tmp_path / "rows.parquet", pa.table({"x": column})) == [
            {"x": text} for text in texts
        ], kind


def test_bytes_that_are_no_text_stay_bytes(tmp_path):
    table = pa.table({"x": pa.array([b"a", b"\xff"], pa.binary())})
    assert table_values(tmp_path / "rows.parquet", table) == [{"x": "a"}, {"x": b"\xff"}]


def test_maps_are_objects_and_nulls_of_structs_are_none(tmp_path):
    turn = pa.map_(pa.string(), pa.string())
    table = pa.table(
        {
            "messages": pa.array([[[("role", "user"), ("content", "q")]], None], pa.list_(turn)),
            "meta": pa.array([{"a": 1, "b": None}, None]),
        }
    )
    assert table_values(tmp_path / "rows.parquet", table) == [
        {"messages": [{"role": "user", "content": "q"}], "meta": {"a": 1, "b": None}},
        {"messages": None, "meta": None},
    ]
    twice = pa.table({"m": pa.array([[("a", "x"), ("a", "y")], [("a", "z")]], turn)})
    pq.write_table(twice, tmp_path / "rows.parquet")
    (file,) = find_files([SourceConfig(path=str(tmp_path / "rows.parquet"))])
    bad, good = (row for chunk in cut_chunks([file]) for row in read_chunk(chunk))
    assert (bad.error or "").startswith("a value cannot be read: ")
    assert good.value == {"m": {"a": "z"}}


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    with pa.ipc.new_file(tmp_path / "rows.arrow", table.schema) as out:
        out.write_table(table)
    with pytest.raises(
        UserError, match=r"rows.arrow: two columns are named 'x'; rename one of them"
    ):
        read_rows(tmp_path / "rows.arrow")


def test_rows_are_numbered_over_parts_and_row_groups(tmp_path):
    pq.write_table(pa.table({"n": range(2500)}), tmp_path / "rows.parquet", row_group_size=2100)
    assert read_rows(tmp_path / "rows.parquet") == [(i + 1, {"n": i}) for i in range(2500)]


def test_an_arrow_file_with_wrong_offsets_is_refused_and_ends_no_process(tmp_path):
    offsets = pa.py_buffer(np.array([0, 5, 2, 6], np.int32))
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abcdef")])
    batch = pa.RecordBatch.from_arrays([texts, texts], ["instruction", "output"])
    with pa.ipc.new_stream(tmp_path / "rows.arrow", batch.schema) as out:
        out.write_batch(batch)
    with pytest.raises(UserError, match=r"rows.arrow: damaged \(.*offset.*\); fix or replace"):
        read_rows(tmp_path / "rows.arrow")
