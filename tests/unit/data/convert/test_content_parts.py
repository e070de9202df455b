"""Contents and messages of other makers' shapes become texts, thoughts, calls and results."""

from __future__ import annotations

import json

import pytest

from pipelines.core.conversation import Turn
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def answer(content, **keys) -> Turn:
    return to_conversation(
        {"messages": [USER, {"role": "assistant", "content": content, **keys}]}
    ).turns[1]


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": "ab"}],
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        [{"type": "text", "value": "ab"}],  # LLaMA-Factory
        [{"type": "text", "content": "ab"}],
        [{"text": "ab"}],  # Bedrock and Gemini
        [{"type": None, "text": "ab", "image_url": None}],  # a table fills absent fields with null
        [{"type": "output_text", "text": "ab", "annotations": []}],  # OpenAI's responses
        ["a", "b"],
    ],
)
def test_parts_of_text_are_joined(parts):
    assert answer(parts) == Turn("assistant", "ab")


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "a part of type image_url"),
        ({"type": "input_audio", "input_audio": {}}, "a part of type input_audio"),
        ({"type": "image", "image": "x", "text": None}, "a part of type image"),
        ({"type": "redacted_thinking", "data": "x"}, "a part of type redacted_thinking"),
        ({"image": {"format": "png"}}, "a part with the keys image"),
        ({"executableCode": {"code": "f"}}, "a part with the keys executableCode"),
        ({"type": "text"}, "a part with the keys type"),
        ({"type": "text", "text": "a", "value": "b"}, "a part with the keys type, text, value"),
        ({"type": "text", "text": 3}, "a part with the keys type, text"),
        ({"type": ["text"], "text": "a"}, "a part of type"),
        (3, "not 3"),
    ],
)
def test_other_parts_cost_the_row_and_are_named(part, reason):
    with pytest.raises(RowError, match=f"{reason}.*|.*{reason}") as error:
        answer([{"type": "text", "text": "a"}, part])
    assert "only parts of type text can be trained" in str(error.value)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "a", "reasoning_content": "t"},
        {"content": "a", "reasoning": "t"},
        {"content": "a", "thinking": "t"},
        {"content": "a", "thought": "t", "reasoning": None},
        {"content": "a", "reasoning": "t", "reasoning_content": "t"},
        {"content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]},
        {"content": [{"type": "reasoning", "value": "t"}, {"type": "text", "value": "a"}]},
        {"content": [{"type": "reasoning", "text": "t"}, "a"]},
        {"parts": [{"text": "t", "thought": True}, {"text": "a"}]},
    ],
)
def test_a_thought_is_the_reasoning_of_its_turn(message):
    row = {"messages": [USER, {"role": "assistant", **message}]}
    assert to_conversation(row).turns[1] == Turn("assistant", "a", reasoning="t")
    assert to_conversation(row).unused_keys == ()


@pytest.mark.parametrize(
    "message",
    [
        {"content": "a", "reasoning": "t", "thinking": "u"},
        {"content": "<think>t</think>a", "reasoning": "t"},
        {"content": "a", "reasoning": ["t"]},
        {"content": ["a", {"type": "thinking", "thinking": "t"}]},
    ],
)
def test_thoughts_that_contradict_each_other_cost_the_row(message):
    with pytest.raises(RowError, match="thought|reasoning"):
        to_conversation({"messages": [USER, {"role": "assistant", **message}]})


def test_anthropics_calls_and_results_become_turns():
    row = {
        "system": [{"type": "text", "text": "s"}],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}},
                    {"type": "tool_use", "id": "2", "name": "f", "input": {"x": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "r"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "2",
                        "content": [{"type": "text", "text": "s"}],
                    },
                    {"type": "text", "text": "And now?"},
                ],
            },
            ANSWER,
        ],
    }
    talk = to_conversation(row)
    assert talk.turns == (
        Turn("system", "s"),
        Turn("user", "q"),
        Turn("assistant", "I look.", tool_calls=(CALL, CALL)),
        Turn("tool", "r"),
        Turn("tool", "s"),
        Turn("user", "And now?"),
        Turn("assistant", "a"),
    )
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert talk.tools == ({"type": "function", "function": function},)
    assert talk.unused_keys == ()


def test_llama_factorys_thought_and_call_are_parts():
    call = json.dumps({"name": "f", "arguments": {"x": 1}})
    turn = answer([{"type": "reasoning", "value": "t"}, {"type": "tool_call", "value": call}])
    assert turn == Turn("assistant", "", tool_calls=(CALL,), reasoning="t")


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "tool_use", "name": "f", "input": {}}, {"type": "text", "text": "later"}],
        [{"type": "text", "text": "a"}, {"type": "tool_result", "content": "r"}],
    ],
)
def test_an_order_that_a_message_cannot_have_costs_the_row(parts):
    with pytest.raises(RowError, match="follows a part that it must precede"):
        answer(parts)


def test_geminis_contents_are_turns():
    row = {
        "systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "q"}]},
            {"role": "model", "parts": [{"text": "a"}, {"text": "b"}]},
        ],
    }
    talk = to_conversation(row)
    assert [(turn.role, turn.content) for turn in talk.turns] == [
        ("system", "s"), ("user", "q"), ("assistant", "ab"),
    ]  # fmt: skip
    assert talk.unused_keys == ()


def test_an_object_of_roles_is_an_exchange():
    row = {"conversation": [{"human": "q", "assistant": "a"}, {"User": "p", "gpt": "b"}]}
    assert [(turn.role, turn.content) for turn in to_conversation(row).turns] == [
        ("user", "q"), ("assistant", "a"), ("user", "p"), ("assistant", "b"),
    ]  # fmt: skip


def test_an_object_of_lists_is_a_list_of_turns():
    """The datasets library stores a Sequence of objects so."""
    turns = {"from": ["human", "gpt"], "value": ["q", "a"], "weight": [None, 0.5]}
    assert to_conversation({"conversations": turns}).turns == (
        Turn("user", "q"), Turn("assistant", "a", weight=0.5),
    )  # fmt: skip
    for wrong in ({"from": ["human"], "value": ["q", "a"]}, {"from": "human", "value": "q"}, {}):
        with pytest.raises(RowError, match="conversations: expected a list of turns"):
            to_conversation({"conversations": wrong})


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("User", "user"), ("ASSISTANT", "assistant"), ("prompter", "user"), ("ai", "assistant"),
        ("chatgpt", "assistant"), ("bing", "assistant"), ("bard", "assistant"),
        ("Chatbot", "assistant"), ("ipython", "tool"), ("tool_response", "tool"),
        ("tool-response", "tool"), ("Human", "user"), ("System", "system"),
    ],
)  # fmt: skip
def test_role_names_are_known_in_any_case(name, role):
    messages = [USER, {"role": name, "content": "x"}, ANSWER]
    assert to_conversation({"messages": messages}).turns[1] == Turn(role, "x")
    messages = [USER, {"from": name, "value": "x"}, ANSWER]
    assert to_conversation({"conversations": messages}).turns[1] == Turn(role, "x")


def test_the_recipes_roles_map_other_names_and_precede_the_known_ones():
    messages = [{"role": "Patient", "content": "q"}, {"role": "model", "content": "a"}]
    with pytest.raises(RowError, match=r"unknown role 'Patient'; known: .*the source's `roles`"):
        to_conversation({"messages": messages})
    talk = to_conversation({"messages": messages}, roles={"Patient": "user"})
    assert [turn.role for turn in talk.turns] == ["user", "assistant"]
    swapped = {
        "messages": [{"role": "assistant", "content": "q"}, {"role": "user", "content": "a"}]
    }
    talk = to_conversation(swapped, roles={"assistant": "user", "user": "assistant"})
    assert [turn.role for turn in talk.turns] == ["user", "assistant"]


def test_a_message_without_a_role_is_refused_with_its_keys():
    with pytest.raises(RowError, match=r"a turn without a role, with the keys speaker, content"):
        to_conversation({"messages": [{"speaker": "user", "content": "q"}, ANSWER]})
