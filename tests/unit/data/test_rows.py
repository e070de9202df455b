"""Rows that say more, or say it in an older way, than the plain form of their format."""

from __future__ import annotations

import json

import pytest

from pipelines.contracts import Turn
from pipelines.data.formats import RowError, to_conversation

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CALLS = [{"name": name, "arguments": {"at": name}} for name in ("look", "hear")]
WANTED = tuple({"type": "function", "function": call} for call in CALLS)


def contents(row, **kwargs) -> list[str]:
    return [turn.content for turn in to_conversation(row, **kwargs).turns]


def test_mapped_columns_decide_the_format():
    """Preference rows hold a prompt, and what is mapped shall be trained, not what happens to be called completion."""
    row = {"prompt": "p", "completion": "worse", "chosen": "better", "text": "x"}
    assert contents(row, columns={"instruction": "prompt", "output": "chosen"}) == ["p", "better"]
    assert contents(row, columns={"completion": "chosen"}) == ["p", "better"]
    assert contents(row) == ["p", "worse"]


def test_keys_that_a_table_fills_with_null_are_not_those_of_the_format():
    row = {"messages": None, "conversations": None, "instruction": "i", "output": "o", "question": "q", "answer": None}
    assert contents(row) == ["i", "o"]
    assert contents({"messages": TALK, "prompt": None, "completion": None}) == ["a", "b"]
    with pytest.raises(RowError, match="messages: expected a list of turns"):
        to_conversation({"messages": None, "conversations": None})


def test_a_system_text_beside_messages_is_their_system_turn():
    assert contents({"messages": TALK, "system": "s"}) == ["s", "a", "b"]
    own = [{"role": "system", "content": "own"}, *TALK]
    assert contents({"messages": own, "system": "s"}) == ["own", "a", "b"]
    assert contents({"prompt": own[:2], "completion": "b", "system": "s"}) == ["own", "a", "b"]


def test_several_calls_at_once_are_one_turn():
    turns = [{"from": "human", "value": "a"}, {"from": "function_call", "value": json.dumps(CALLS)}]
    assert to_conversation({"conversations": turns}).turns[1] == Turn("assistant", "", tool_calls=WANTED)
    for wrong in ("[]", "[1]", "look"):
        with pytest.raises(RowError, match=r"conversations\[1\]: a tool call is an object with name and arguments"):
            to_conversation({"conversations": [turns[0], {"from": "function_call", "value": wrong}]})


def test_the_older_function_call_of_openai_is_a_tool_call():
    call = {"name": "look", "arguments": '{"at": "look"}'}
    messages = [
        TALK[0],
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "look", "content": "bird"},
        {"role": "assistant", "content": "a bird", "function_call": None},
    ]
    talk = to_conversation({"messages": messages, "functions": [{"name": "look"}]})
    assert talk.turns[1] == Turn("assistant", "", tool_calls=WANTED[:1])
    assert [turn.role for turn in talk.turns] == ["user", "assistant", "tool", "assistant"]
    assert talk.tools == ({"type": "function", "function": {"name": "look"}},)


def test_a_call_without_arguments_has_none():
    for call in ({"name": "f"}, {"name": "f", "arguments": None}, {"name": "f", "arguments": "{}"}):
        talk = to_conversation({"messages": [TALK[0], {"role": "assistant", "tool_calls": [call]}]})
        assert talk.turns[1].tool_calls[0]["function"] == {"name": "f", "arguments": {}}
