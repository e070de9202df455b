"""Tools and tool calls, in the spellings of several makers, become OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.data.convert.row_checks import brief, check_json
from pipelines.data.convert.row_context import RowContext
from pipelines.data.convert.row_error import RowError
from pipelines.data.read.raw_row import strict_decoder

_DECODE = strict_decoder().decode
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_SCHEMAS = ("parameters", "input_schema", "inputSchema")
_DECLARATIONS = ("function_declarations", "functionDeclarations")
# Keys of a call that say nothing beyond its order, its kind and its name.
_CALL_KEYS = frozenset(
    {"id", "type", "index", "function", "name", "strict", "description", "toolUseId"}
)
# Keys of a schema in which JSON's null is a value.
_NULLABLE = frozenset({"default", "const", "example", "examples"})


def tools_of(row: Mapping[str, Any], context: RowContext) -> tuple[Mapping[str, Any], ...]:
    """The tools that a row offers, in OpenAI's form. Raises RowError when they are malformed."""
    value = row.get("functions") if row.get("tools") is None else row["tools"]
    tools = decode_json_text(value) or ()
    if isinstance(tools, list | tuple):
        tools = [decode_json_text(tool) for tool in tools]
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("tools: expected a list of objects, or the same as JSON text")
    filled = context.from_table and not isinstance(value, str)
    tools = [without_nulls(tool, () if filled else _NULLABLE) for tool in tools]
    check_json(tools, "tools")
    declared: list[Mapping[str, Any]] = []
    for tool in tools:  # Gemini's tools are lists of functions
        lists = [tool[key] for key in _DECLARATIONS if isinstance(tool.get(key), list)]
        declared += lists[0] if lists else [tool]
    return tuple(map(_tool, declared))


def call_of(call: Any, where: str, path: str, context: RowContext) -> Mapping[str, Any]:
    """A tool call in OpenAI's form, from any spelling; its arguments become an object."""
    if not isinstance(call, Mapping):
        raise RowError(f"{where}: a tool call is an object with name and arguments")
    function = call.get("function") or call
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{where}: a tool call without a name")
    name, fields = function["name"], {**call, **function}
    key = next((key for key in _ARGUMENTS if fields.get(key) is not None), "arguments")
    value = fields.pop(key, None)
    context.note_unused(path, {k: v for k, v in fields.items() if k not in _CALL_KEYS})
    arguments = _arguments(value, f"{where}: the arguments of the call {name}")
    check_json(name, f"{where}: the name of a tool call")
    check_json(arguments, f"{where}: the arguments of a tool call")
    if context.from_table and not isinstance(value, str):
        arguments = without_nulls(arguments)
    elif None in arguments.values() and (listed := context.properties(name)) is not None:
        # Rows that were written from a table have null for the arguments of other tools.
        arguments = {k: v for k, v in arguments.items() if v is not None or k in listed}
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def calls_in_text(text: str, path: str, context: RowContext) -> tuple[Mapping[str, Any], ...]:
    """The calls that an answer is the JSON text of, if all of them are of the row's tools."""
    calls = decode_json_text(text) if context.tools else None
    calls = [calls] if isinstance(calls, Mapping) else calls
    names = [tool["function"]["name"] for tool in context.tools]
    if not isinstance(calls, list) or not calls:
        return ()
    if not all(isinstance(call, Mapping) and call.get("name") in names for call in calls):
        return ()
    return tuple(call_of(call, path, path, context) for call in calls)


def decode_json_text(value: Any) -> Any:
    """The value of a JSON text that is a list or an object; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def without_nulls(value: Any, nullable: Any = ()) -> Any:
    """A JSON value without the keys whose value is null, except the `nullable` ones."""
    if isinstance(value, Mapping):
        return {
            key: without_nulls(item, nullable)
            for key, item in value.items()
            if item is not None or key in nullable
        }
    if isinstance(value, list | tuple):
        return [without_nulls(item, nullable) for item in value]
    return value


def _arguments(value: Any, where: str) -> Mapping[str, Any]:
    """The arguments of a call: an object, or its JSON text, which may be quoted once more."""
    arguments = value
    for _ in range(2):
        if isinstance(arguments, str):
            if not arguments.strip():
                return {}
            try:
                arguments = _DECODE(arguments)
            except (ValueError, RecursionError):
                raise RowError(f"{where} are not JSON: {brief(value)}") from None
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise RowError(f"{where} are not a JSON object: {brief(value)}")
    return arguments


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool in OpenAI's form: bare, or as Anthropic, MCP, Bedrock and Gemini write it."""
    if not isinstance(tool, Mapping):
        raise RowError("tools: a tool is an object")
    if isinstance(function := tool.get("function"), Mapping):
        if not isinstance(function.get("name"), str):
            raise RowError("tools: a tool without a name")
        return tool
    tool = tool["toolSpec"] if isinstance(tool.get("toolSpec"), Mapping) else tool
    if not isinstance(tool.get("name"), str):
        raise RowError(f"tools: a tool without a name, with the keys {', '.join(map(str, tool))}")
    function = {
        "parameters" if key in _SCHEMAS else key: _schema(value) if key in _SCHEMAS else value
        for key, value in tool.items()
        if (key, value) != ("type", "function")
    }
    return {"type": "function", "function": function}


def _schema(schema: Any) -> Any:
    """The schema of a tool's arguments, which Bedrock has under `json`."""
    is_wrapped = isinstance(schema, Mapping) and isinstance(schema.get("json"), Mapping)
    return schema["json"] if is_wrapped else schema
