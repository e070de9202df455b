"""The `columns` of a source: they rename keys in every format, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.config.schema.data import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.convert.format_keys import check_columns
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def sources(*columns: dict[str, str], format: Any = "auto") -> list[SourceConfig]:
    return [SourceConfig(path="rows.jsonl", columns=each, format=format) for each in columns]


def contents(row, **kwargs) -> list[str]:
    return [turn.content for turn in to_conversation(row, **kwargs).turns]


def test_columns_maps_the_keys_of_a_row():
    row = {"frage": "q", "antwort": "a"}
    with pytest.raises(RowError, match="unknown format: the row has the keys frage, antwort"):
        to_conversation(row)
    talk = to_conversation(row, columns={"prompt": "frage", "completion": "antwort"})
    assert [t.content for t in talk.turns] == ["q", "a"]


def test_mapped_columns_decide_the_format():
    """Preference rows may have a key `completion`; the mapped answer must win over it."""
    row = {"prompt": "p", "completion": "worse", "chosen": "better", "text": "x"}
    assert contents(row, columns={"instruction": "prompt", "output": "chosen"}) == ["p", "better"]
    assert contents(row, columns={"completion": "chosen"}) == ["p", "better"]
    assert contents(row) == ["p", "worse"]


def test_a_missing_mapped_column_costs_the_row_unless_it_is_optional():
    """The keys of the row fit a format too, which must not be used silently."""
    row = {"instruction": "i", "output": "o", "answer": "a"}
    assert contents(row, columns={"completion": "answer", "prompt": "instruction"}) == ["i", "a"]
    with pytest.raises(
        RowError,
        match=r"columns: the row has no anwser for completion, but instruction, output, answer",
    ):
        to_conversation(row, columns={"completion": "anwser", "prompt": "instruction"})
    assert contents(row, columns={"input": "context", "output": "answer"}) == ["i", "a"]
    with pytest.raises(
        UserError, match=r"^data.sources.1.columns: no format has the key prmpt; valid: .*, prompt,"
    ):
        check_columns(sources({"system": "s"}, {"completion": "output", "prmpt": "instruction"}))


@pytest.mark.parametrize(
    ("row", "columns", "turns"),
    [
        ({"question": "q", "context": "t", "answer": "a"}, {"input": "context"}, ["q\n\nt", "a"]),
        ({"question": "q", "passage": "t", "answer": "a"}, {"context": "passage"}, ["t\n\nq", "a"]),
        ({"prompt": "q", "text": "a"}, {"completion": "text"}, ["q", "a"]),
        ({"messages": TALK, "persona": "s"}, {"system": "persona"}, ["s", "a", "b"]),
        ({"chat": TALK}, {"messages": "chat"}, ["a", "b"]),
        ({"chat": TALK}, {"conversations": "chat"}, ["a", "b"]),
        ({"f": "q", "g": "a"}, {"query": "f", "response": "g"}, ["q", "a"]),
        ({"f": "q", "g": "a", "h": "t"}, {"prompt": "f", "completion": "g", "reasoning": "h"},
         ["q", "a"]),
        ({"prompt": "a", "completion": "q"}, {"prompt": "completion", "completion": "prompt"},
         ["q", "a"]),
        ({"text": "q", "summary": "a"}, {"prompt": "text", "completion": "summary"}, ["q", "a"]),
        ({"problem": "q", "solution": "a", "answer": "3"}, {"completion": "solution"}, ["q", "a"]),
    ],
)  # fmt: skip
def test_columns_are_honoured_in_every_format(row, columns, turns):
    assert contents(row, columns=columns) == turns
    leftover = to_conversation(row, columns=columns).unused_keys
    assert leftover == (("answer",) if "problem" in row else ())


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": TALK, "notes": "n"}, {"input": "notes"}),
        ({"conversations": TALK, "past": [["a", "b"]]}, {"history": "past"}),
        ({"messages": TALK, "body": "t"}, {"text": "body"}),
        ({"prompt": TALK[:1], "completion": "b", "notes": "n"}, {"context": "notes"}),
        ({"instruction": "i", "output": "o", "q": "q"}, {"question": "q"}),
    ],
)
def test_mapped_keys_that_do_nothing_cost_the_row(row, columns):
    key = next(iter(columns))
    with pytest.raises(RowError, match=f"columns: {key}: {columns[key]} does nothing"):
        to_conversation(row, columns=columns)


def test_a_misspelled_optional_column_costs_the_row():
    row = {"question": "q", "answer": "a", "context": "c"}
    with pytest.raises(RowError, match="columns: the row has no contxt for input"):
        to_conversation(row, columns={"input": "contxt"})
    assert contents(row, columns={"system": "persona"}) == ["c\n\nq", "a"]


@pytest.mark.parametrize(
    ("format", "columns"),
    [
        ("messages", {"input": "context"}),
        ("sharegpt", {"prompt": "q"}),
        ("question_answer", {"messages": "chat"}),
        ("text", {"system": "s"}),
        ("alpaca", {"text": "body"}),
    ],
)
def test_columns_that_a_set_format_lacks_are_refused_before_any_row_is_read(format, columns):
    with pytest.raises(
        UserError,
        match=rf"^data.sources.0.columns: the format {format} has no key {next(iter(columns))};",
    ):
        check_columns(sources(columns, format=format))


def test_columns_of_every_spelling_are_valid():
    keys = ("query", "response", "system_prompt", "context", "reasoning", "conversation", "text")
    check_columns(sources(*({key: "x"} for key in keys)))
    check_columns(sources({"instruction": "x", "response": "y", "context": "z"}, format="alpaca"))
