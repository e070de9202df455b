"""Messages in the spellings of OpenAI and ShareGPT become the same turns, tool calls included."""

from __future__ import annotations

import json

import pytest

from pipelines.core.conversation import Turn
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


CALLS = [{"name": name, "arguments": {"at": name}} for name in ("look", "hear")]


WANTED = tuple({"type": "function", "function": call} for call in CALLS)


TOOL = {"name": "look", "parameters": {"type": "object"}}


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}


def contents(row) -> list[str]:
    return [turn.content for turn in to_conversation(row).turns]


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


def test_turns_carry_train_and_weight():
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "train": False},
        {"role": "assistant", "content": "c", "weight": 0.5},
    ]
    talk = to_conversation({"messages": messages})
    assert [(t.train, t.weight) for t in talk.turns[1:]] == [(False, 1.0), (True, 0.5)]


def test_a_system_key_becomes_the_system_turn_of_messages():
    assert contents({"messages": TALK, "system": "s"}) == ["s", "a", "b"]
    own = [{"role": "system", "content": "own"}, *TALK]
    assert contents({"messages": own, "system": "s"}) == ["own", "a", "b"]
    assert contents({"prompt": own[:2], "completion": "b", "system": "s"}) == ["own", "a", "b"]


def test_several_calls_at_once_are_one_turn():
    turns = [{"from": "human", "value": "a"}, {"from": "function_call", "value": json.dumps(CALLS)}]
    assert to_conversation({"conversations": turns}).turns[1] == Turn(
        "assistant", "", tool_calls=WANTED
    )
    for wrong in ("[]", "[1]", "look"):
        with pytest.raises(
            RowError, match=r"conversations\[1\]: a tool call is an object with name and arguments"
        ):
            to_conversation(
                {"conversations": [turns[0], {"from": "function_call", "value": wrong}]}
            )


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


def test_a_call_without_arguments_gets_an_empty_object():
    for call in ({"name": "f"}, {"name": "f", "arguments": None}, {"name": "f", "arguments": "{}"}):
        talk = to_conversation({"messages": [TALK[0], {"role": "assistant", "tool_calls": [call]}]})
        assert talk.turns[1].tool_calls[0]["function"] == {"name": "f", "arguments": {}}
