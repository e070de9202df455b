from __future__ import annotations

import csv
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config.schema import SourceConfig
from pipelines.core.conversation import Turn
from pipelines.core.errors import UserError
from pipelines.data.convert.row_formats import RowError, detect_format, to_conversation
from pipelines.data.read.chunks import cut_chunks, lines_between
from pipelines.data.read.rows import read_chunk
from pipelines.sources.files import files_at, find_files

TOOL = {"name": "look", "parameters": {"type": "object"}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}


@pytest.mark.parametrize(
    ("row", "format", "turns"),
    [
        (
            {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["a", "b"]]},
            "alpaca",
            [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "i\n\nx"), ("assistant", "o")],
        ),
        ({"instruction": "i", "output": "o"}, "alpaca", [("user", "i"), ("assistant", "o")]),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
            "sharegpt",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "a"}]},
                          {"role": "assistant", "content": "b"}]},
            "messages",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        ({"prompt": "p", "completion": "c"}, "prompt_completion", [("user", "p"), ("assistant", "c")]),
        ({"question": "q", "answer": "a"}, "question_answer", [("user", "q"), ("assistant", "a")]),
    ],
)  # fmt: skip
def test_each_format_is_detected_and_converted(row, format, turns):
    assert detect_format(row) == format
    assert [(t.role, t.content) for t in to_conversation(row).turns] == turns
    assert to_conversation(row, format) == to_conversation(row)


def test_tool_calls_of_sharegpt_and_openai_become_the_same():
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "a"},
            {
                "from": "function_call",
                "value": json.dumps({"name": "look", "arguments": {"at": "sky"}}),
            },
            {"from": "observation", "value": "bird"},
            {"from": "gpt", "value": "a bird"},
        ],
        "tools": json.dumps([TOOL]),
    }
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"at": "sky"}'},
    }
    openai = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "bird"},
            {"role": "assistant", "content": "a bird"},
        ],
        "tools": [{"type": "function", "function": TOOL}],
    }
    assert to_conversation(sharegpt) == to_conversation(openai)
    assert to_conversation(openai).turns[1] == Turn("assistant", "", tool_calls=(CALL,))


def test_a_prompt_may_be_a_list_of_turns_and_is_never_trained_whatever_the_completion_is():
    prompt = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    for completion in ([{"role": "assistant", "content": "d"}], "d"):
        talk = to_conversation({"prompt": prompt, "completion": completion})
        assert [t.content for t in talk.turns if t.role == "assistant" and t.train] == ["d"]
        assert [t.content for t in talk.turns] == ["a", "b", "c", "d"]


def test_turns_carry_train_and_weight():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False},
                {"role": "assistant", "content": "c", "weight": 0.5}]  # fmt: skip
    talk = to_conversation({"messages": messages})
    assert [(t.train, t.weight) for t in talk.turns[1:]] == [(False, 1.0), (True, 0.5)]


def test_a_columns_map_names_the_rows_own_keys():
    row = {"frage": "q", "antwort": "a"}
    with pytest.raises(RowError, match="unknown format: the row has the keys frage, antwort"):
        to_conversation(row)
    talk = to_conversation(row, columns={"prompt": "frage", "completion": "antwort"})
    assert [t.content for t in talk.turns] == ["q", "a"]


ROWS = [
    {"instruction": f"Say {i}, please", "input": "", "output": f'It is "{i}",\nfriend é'}
    for i in range(7)
]


def write(path, rows=ROWS):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as out:
            writer = csv.DictWriter(
                out, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path, table.schema) as out:
            out.write_table(table, max_chunksize=3)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(path, table.schema) as out:
            out.write_table(table, max_chunksize=3)
    return path


@pytest.mark.parametrize(
    "suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".feather"]
)
@pytest.mark.parametrize("chunk_bytes", [1, 40, 1 << 20])
def test_every_file_type_gives_the_same_rows_however_it_is_cut(tmp_path, suffix, chunk_bytes):
    path = write(tmp_path / f"rows{suffix}")
    chunks = cut_chunks(find_files([SourceConfig(path=str(path))]), chunk_bytes)
    rows = [row for chunk in chunks for row in read_chunk(chunk)]
    assert [row.value for row in rows] == ROWS and not any(row.error for row in rows)


def test_lines_are_numbered_over_the_whole_file(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    for chunk_bytes in (1, 37, 100, 1 << 20):
        chunks = cut_chunks(find_files([SourceConfig(path=str(path))]), chunk_bytes)
        lines = [
            lines_between(chunk.path, 0, chunk.first) + row.number
            for chunk in chunks
            for row in read_chunk(chunk)
        ]
        assert lines == list(range(7))


def test_a_json_file_may_hold_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (file,) = files_at(str(path), "data.sources.0.path")
    assert file.kind == "jsonl"


@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_named_after_lines_may_hold_an_array(tmp_path, indent):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS, indent=indent))
    assert [value for _, value in read(tmp_path / "rows.jsonl")] == ROWS


@pytest.mark.parametrize("first", ['[{"a": 1}]', '[{"a": 1}', "[1]", "["])
def test_a_first_line_that_is_a_list_costs_no_other(tmp_path, first):
    (tmp_path / "rows.jsonl").write_text("\n".join([first, *map(json.dumps, ROWS)]) + "\n")
    found = read(tmp_path / "rows.jsonl")
    assert [pair for pair in found if pair[1] in ROWS] == list(enumerate(ROWS, 2))


def test_a_remote_source_is_read_like_a_local_one():
    import fsspec

    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    fsspec.filesystem("memory").pipe_file("bucket/rows.jsonl", text.encode())
    files = find_files(
        [SourceConfig(path="memory://bucket/*.jsonl"), SourceConfig(path="memory://bucket")]
    )
    assert [file.source for file in files] == [0, 1]
    rows = [row.value for chunk in cut_chunks(files[:1], 64) for row in read_chunk(chunk)]
    assert rows == ROWS


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memory://bucket/nothing.jsonl", "nothing there of a known type"),
        (
            "wat://bucket/rows.jsonl",
            r"data.sources.0.path=wat://bucket/rows.jsonl: wat:// cannot be read here",
        ),
    ],
)
def test_a_remote_source_that_cannot_be_read_is_one_line(path, message):
    with pytest.raises(UserError, match=message) as error:
        find_files([SourceConfig(path=path)])
    assert "\n" not in str(error.value)


def read(path) -> list[tuple[int, Any]]:
    """Of each row of a file its line and its value, or why it cannot be read."""
    (file,) = find_files([SourceConfig(path=str(path))])
    rows = [row for chunk in cut_chunks([file]) for row in read_chunk(chunk)]
    assert (
        all(row.text for row in rows if row.error)
        and max((len(row.text) for row in rows), default=0) <= 2000
    )
    return [(row.number + 1, row.error or row.value) for row in rows]


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        (['a,"b', "c,d", 'e,"f"'], {2: "not CSV"}),  # the next quote closes it
        (["a,b", 'c,"d', "e,f"], {3: "not CSV: unexpected end of data"}),  # none does
        (['"a","b', '"c","d"', '"e","f"'], {2: "not CSV"}),
        (["a,b", "c,d,e", 'f,"g\nh"', "i"], {3: "3 fields, the header has 2", 6: "1 fields"}),
    ],
)
def test_an_open_quote_in_a_csv_file_costs_its_line(tmp_path, lines, bad):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["prompt,completion", *lines]) + "\n")
    found = dict(read(path))
    assert {
        line: reason for line, reason in found.items() if isinstance(reason, str)
    }.keys() == bad.keys()
    assert all(reason in found[line] for line, reason in bad.items())
    assert len([row for row in found.values() if isinstance(row, dict)]) == len(lines) - len(bad)


def test_a_long_csv_field_is_a_row_and_an_endless_one_is_not(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text(f'prompt,completion\na,"{"x" * 300_000}"\nb,"{"y" * (9 << 20)}"\nc,d\n')
    found = read(path)
    assert [line for line, _ in found][:2] == [2, 3] and found[0][1]["completion"] == "x" * 300_000
    assert "characters in one row" in found[1][1] and found[-1][1] == {
        "prompt": "c",
        "completion": "d",
    }


@pytest.mark.parametrize("header", ['prompt,"completion', "prompt,prompt"])
def test_a_csv_header_that_is_none_is_one_line(tmp_path, header):
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\na,b\n")
    with pytest.raises(UserError, match="header"):
        read(path)


ELEMENTS = [
    json.dumps({"instruction": f"q{i}", "output": "o", "history": [{"instruction": 1}]})
    for i in range(5)
]


@pytest.mark.parametrize("joint", [", ", ",", ",\n", "\n,"])
@pytest.mark.parametrize(
    "damage",
    [lambda e: e[:-9], lambda e: e.replace('"o"', '"o'), lambda e: e.replace('"o"', "NaN"), lambda e: "nonsense", lambda e: "]" + e[:9]],
)  # fmt: skip
def test_a_broken_element_of_an_array_costs_itself_however_it_is_laid_out(tmp_path, joint, damage):
    path = tmp_path / "rows.json"
    path.write_text("[" + joint.join([*ELEMENTS[:2], damage(ELEMENTS[2]), *ELEMENTS[3:]]) + "]")
    values = [value for _, value in read(path)]
    assert [v["instruction"] for v in values if isinstance(v, dict)] == ["q0", "q1", "q3", "q4"]
    assert len([v for v in values if isinstance(v, str)]) == 1


def test_an_array_that_is_cut_off_or_goes_on_says_so(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[" + ELEMENTS[0] + ",\n")
    assert [value for _, value in read(path)][1:] == [
        "the array has no end: the file is cut off here"
    ]
    path.write_text(f"[{ELEMENTS[0]}]\n[{ELEMENTS[1]}]\n")
    assert [type(value) for _, value in read(path)] == [dict, str, dict]


def test_an_array_longer_than_its_window_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.data.read.json_array.MAX_ROW_BYTES", 100)
    path = tmp_path / "rows.json"
    path.write_text(
        json.dumps(
            [{"n": i, "text": "é" * (i % 40)} for i in range(500)], indent=1, ensure_ascii=False
        )
    )
    assert [value["n"] for _, value in read(path)] == list(range(500))
    assert read(path)[7][0] == 2 + 7 * 4


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_table_gives_dates_and_bytes_to_the_formats_which_refuse_them(tmp_path, suffix):
    import datetime

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
    path = write(tmp_path / f"rows{suffix}", [{"messages": talk}, {"messages": talk[:1]}])
    (_, first), _ = read(path)
    with pytest.raises(
        RowError,
        match=r"messages\[1\]: the arguments of a tool call: a value of type datetime is not JSON",
    ):
        to_conversation(first)


def test_a_value_of_a_table_that_python_cannot_hold_costs_its_row(tmp_path):
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


def test_a_damaged_table_is_one_line(tmp_path):
    path = write(
        tmp_path / "rows.parquet", [{"prompt": "a" * i, "completion": str(i)} for i in range(500)]
    )
    content = bytearray(path.read_bytes())
    content[40:400] = b"\xff" * 360
    path.write_bytes(content)
    with pytest.raises(UserError, match="rows.parquet: damaged"):
        read(path)
