"""Each row format is detected, converted, and refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.schema.data import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.convert.format_keys import check_columns, detect_format
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def sources(*columns: dict[str, str], format: Any = "auto") -> list[SourceConfig]:
    return [SourceConfig(path="rows.jsonl", columns=each, format=format) for each in columns]


def contents(row, **kwargs) -> list[str]:
    return [turn.content for turn in to_conversation(row, **kwargs).turns]


@pytest.mark.parametrize(
    ("row", "format", "turns"),
    [
        (
            {
                "instruction": "i",
                "input": "x",
                "output": "o",
                "system": "s",
                "history": [["a", "b"]],
            },
            "alpaca",
            [
                ("system", "s"),
                ("user", "a"),
                ("assistant", "b"),
                ("user", "i\n\nx"),
                ("assistant", "o"),
            ],
        ),
        ({"instruction": "i", "output": "o"}, "alpaca", [("user", "i"), ("assistant", "o")]),
        (
            {
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
                "system": "s",
            },
            "sharegpt",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "s"},
                    {"role": "user", "content": [{"type": "text", "text": "a"}]},
                    {"role": "assistant", "content": "b"},
                ]
            },
            "messages",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            {"prompt": "p", "completion": "c"},
            "prompt_completion",
            [("user", "p"), ("assistant", "c")],
        ),
        ({"question": "q", "answer": "a"}, "question_answer", [("user", "q"), ("assistant", "a")]),
    ],
)
def test_each_format_is_detected_and_converted(row, format, turns):
    assert detect_format(row) == format
    assert [(t.role, t.content) for t in to_conversation(row).turns] == turns
    assert to_conversation(row, format) == to_conversation(row)


def test_a_prompt_may_be_a_list_of_turns_and_never_enters_the_loss():
    prompt = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    for completion in ([{"role": "assistant", "content": "d"}], "d"):
        talk = to_conversation({"prompt": prompt, "completion": completion})
        assert [t.content for t in talk.turns if t.role == "assistant" and t.train] == ["d"]
        assert [t.content for t in talk.turns] == ["a", "b", "c", "d"]


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


def test_keys_with_null_values_do_not_decide_the_format():
    row = {
        "messages": None,
        "conversations": None,
        "instruction": "i",
        "output": "o",
        "question": "q",
        "answer": None,
    }
    assert contents(row) == ["i", "o"]
    assert contents({"messages": TALK, "prompt": None, "completion": None}) == ["a", "b"]
    with pytest.raises(RowError, match="messages: missing"):
        to_conversation({"messages": None, "conversations": None})


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
    ("format", "key"), [("messages", "messages"), ("sharegpt", "conversations")]
)
def test_a_row_without_the_turns_of_its_format_is_refused(format, key):
    for row in ({"instruction": "i", "output": "o"}, {key: None}):
        with pytest.raises(RowError, match=f"^{key}: missing$"):
            to_conversation(row, format)


def test_an_empty_answer_is_context_in_every_format(pocket_base):
    talk = [
        ("user", "a"),
        ("assistant", " "),
        ("user", "b"),
        ("assistant", "c"),
        ("user", "d"),
        ("assistant", ""),
    ]
    messages = [{"role": role, "content": text} for role, text in talk]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    called = 'c<|end|><tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|end|>'
    renderer = ChatRenderer.load(pocket_base)
    for row, expected in (
        ({"messages": messages}, "c<|end|>"),
        ({"prompt": messages[:1], "completion": messages[1:]}, "c<|end|>"),
        (
            {"instruction": "d", "output": "e", "history": [["a", ""], ["b", "c"]]},
            "c<|end|>e<|end|>",
        ),
        ({"messages": [*messages, messages[0], call]}, called),
    ):
        rendered = renderer.render(to_conversation(row))
        assert (
            renderer.decode(
                rendered.input_ids[rendered.loss_weights > 0], skip_special_tokens=False
            )
            == expected
        )
