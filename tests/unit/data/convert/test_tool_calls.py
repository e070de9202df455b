"""Tools and calls in several spellings; nulls that Arrow filled in; arguments that are not JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation

USER = {"role": "user", "content": "q"}


def row_of(*calls, **keys):
    answer = {"role": "assistant", "content": "", "tool_calls": list(calls)}
    return {"messages": [USER, answer], **keys}


def arguments(value, tools=None, from_table=False):
    row = row_of({"function": {"name": "f", "arguments": value}}, tools=tools)
    talk = to_conversation(row, from_table=from_table)
    return talk.turns[1].tool_calls[0]["function"]["arguments"]


@pytest.mark.parametrize(
    "value",
    ['{"a": "x"', "look", "{'a': 1}", '{"a": 1} {"b": 2}', '{"a": 1, "a": 2}', '"{\\"a\\": "',
     "[" * 100_000],
)  # fmt: skip
def test_text_that_is_not_json_costs_the_row(value):
    with pytest.raises(RowError, match=r"^messages\[1\]: the arguments of the call f are not JSON"):
        arguments(value)


@pytest.mark.parametrize("value", ["[1]", "3", "true", '"\\"x\\""', [1], 3, True])
def test_json_that_is_no_object_costs_the_row(value):
    with pytest.raises(RowError, match=r"arguments of the call f are not (a JSON object|JSON)"):
        arguments(value)


@pytest.mark.parametrize("value", ['{"a": NaN}', {"a": float("inf")}])
def test_a_number_that_json_lacks_costs_the_row(value):
    with pytest.raises(RowError, match="is not JSON"):
        arguments(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 1}, {"a": 1}),
        ('{"a": 1}', {"a": 1}),
        (json.dumps('{"a": 1}'), {"a": 1}),  # quoted twice
        ("", {}),
        ("null", {}),
        (None, {}),
    ],
)
def test_arguments_are_an_object_or_its_json_text(value, expected):
    assert arguments(value) == expected


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "input"])
def test_other_names_of_the_arguments_are_read(key):
    call = {"type": "function", "id": "1", "name": "f", key: {"a": 1}}
    talk = to_conversation(row_of(call))
    assert talk.turns[1].tool_calls[0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert talk.unused_keys == ()


def test_nulls_of_a_table_are_absent_fields():
    """Arrow gives every call the arguments of all calls."""
    nested = {"a": {"b": None, "c": [{"d": None, "e": 1}]}, "n": None}
    assert arguments(nested, from_table=True) == {"a": {"c": [{"e": 1}]}}
    assert arguments({"a": None}, from_table=True) == {}
    # A JSON text in a table is as it was written.
    assert arguments('{"a": null}', from_table=True) == {"a": None}


def test_nulls_of_json_stay_unless_the_schema_lacks_them():
    """Rows that were exported from a table have null for the arguments of other tools."""
    schema = {"type": "object", "properties": {"city": {"type": ["string", "null"]}}}
    tools = [{"name": "f", "parameters": schema}]
    assert arguments({"city": None, "n": 1}) == {"city": None, "n": 1}
    assert arguments({"city": None, "q": None, "n": 1}, tools) == {"city": None, "n": 1}
    assert arguments({"q": None}, [{"name": "g", "parameters": schema}]) == {"q": None}
    assert arguments({"q": None}, [{"name": "f"}]) == {"q": None}


def test_nulls_of_schemas_are_left_out():
    properties = {"a": {"type": "string", "enum": None, "default": None}, "b": None}
    tool = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    row = {"messages": [USER, {"role": "assistant", "content": "a"}], "tools": [tool]}
    json_schema, table_schema = (
        to_conversation(row, from_table=from_table).tools[0]["function"]["parameters"]["properties"]
        for from_table in (False, True)
    )
    assert json_schema == {"a": {"type": "string", "default": None}}
    assert table_schema == {"a": {"type": "string"}}


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        [{"name": "f", "parameters": SCHEMA}],
        [{"type": "function", "name": "f", "parameters": SCHEMA}],  # OpenAI's responses
        [{"name": "f", "input_schema": SCHEMA}],  # Anthropic
        [{"name": "f", "inputSchema": SCHEMA}],  # MCP
        [{"toolSpec": {"name": "f", "inputSchema": {"json": SCHEMA}}}],  # Bedrock
        [{"function_declarations": [{"name": "f", "parameters": SCHEMA}]}],  # Gemini
        [{"functionDeclarations": [{"name": "f", "parameters": SCHEMA}]}],
        json.dumps([{"name": "f", "parameters": SCHEMA}]),
        [json.dumps({"name": "f", "parameters": SCHEMA})],
    ],
)
def test_tools_of_every_maker_become_openais(tools):
    row = {"question": "q", "answer": "a", "tools": tools}
    assert to_conversation(row).tools == (
        {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
    )


@pytest.mark.parametrize("tool", [{"type": "web_search"}, {"function": {"parameters": {}}}])
def test_a_tool_without_a_name_costs_the_row(tool):
    with pytest.raises(RowError, match="tools: a tool without a name"):
        to_conversation({"question": "q", "answer": "a", "tools": [tool]})


def test_calls_one_after_another_are_one_turn():
    """ms-swift writes parallel calls as messages of their own."""
    call = json.dumps({"name": "f", "arguments": {}})
    roles = [
        ("user", "q"),
        ("assistant", "I look."),
        ("tool_call", call),
        ("tool_call", call),
        ("tool_response", "r"),
        ("tool_response", "s"),
        ("assistant", "a"),
    ]
    talk = to_conversation({"messages": [{"role": r, "content": text} for r, text in roles]})
    assert [turn.role for turn in talk.turns] == ["user", "assistant", "tool", "tool", "assistant"]
    assert talk.turns[1].content == "I look." and len(talk.turns[1].tool_calls) == 2
    messages: list[dict[str, Any]] = [{"role": r, "content": text} for r, text in roles]
    messages[2]["loss"] = False
    with pytest.raises(RowError, match="but is trained differently"):
        to_conversation({"messages": messages})


def test_a_call_of_a_user_costs_the_row():
    messages = [{**USER, "tool_calls": [{"name": "f"}]}, {"role": "assistant", "content": "a"}]
    with pytest.raises(RowError, match="a tool call in a turn of the role user"):
        to_conversation({"messages": messages})


def test_an_answer_that_is_the_json_text_of_calls_is_these_calls():
    """xLAM's rows: query, answers and tools, all as JSON text."""
    tools, call = (
        json.dumps([{"name": "f", "parameters": {}}]),
        {"name": "f", "arguments": {"x": 1}},
    )
    for text in (json.dumps([call, call]), json.dumps(call)):
        turn = to_conversation({"query": "q", "answers": text, "tools": tools}).turns[1]
        assert turn.content == "" and turn.tool_calls[0]["function"] == call
    for text in ('[{"name": "g", "arguments": {}}]', "[1]", "[]", "plain", '{"name": ["f"]}'):
        turn = to_conversation({"query": "q", "answers": text, "tools": tools}).turns[1]
        assert (turn.content, turn.tool_calls) == (text, ())
    text = json.dumps([call])
    assert to_conversation({"query": "q", "answers": text}).turns[1].content == text
