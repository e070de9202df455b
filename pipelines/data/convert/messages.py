"""Lists of messages, in the spellings of OpenAI and ShareGPT, become turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.core.conversation import Turn
from pipelines.data.convert.format_keys import Row
from pipelines.data.convert.row_checks import brief, check_json, require_text
from pipelines.data.convert.row_error import RowError

MAX_WEIGHT = 1000  # the limit of a source's weight too; beyond it one row dominates the loss
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "model": "assistant", "bot": "assistant", "system": "system", "developer": "system",
    "tool": "tool", "observation": "tool", "function_response": "tool", "function": "tool",
    "function_call": "assistant",
}  # fmt: skip


def turns_of(messages: Any, key: str) -> tuple[Turn, ...]:
    """The turns of a list of messages, or of its JSON text. Raises RowError naming `key`."""
    messages = decode_json_text(messages)
    if not isinstance(messages, list) or not messages:
        raise RowError(
            f"{key}: missing" if messages is None else f"{key}: expected a list of turns"
        )
    return tuple(_turn(message, f"{key}[{i}]") for i, message in enumerate(messages))


def tools_of(row: Row) -> tuple[Mapping[str, Any], ...]:
    """The tools that a row offers, in OpenAI's form. Raises RowError when they are malformed."""
    tools = row.get("functions") if row.get("tools") is None else row["tools"]
    tools = decode_json_text(tools) or ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("tools: expected a list of objects, or the same as JSON text")
    check_json(tools, "tools")
    return tuple(
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    )


def decode_json_text(value: Any) -> Any:
    """The value of a JSON text that is a list or an object; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise RowError(f"{where}: a turn is an object, this is {type(message).__name__}")
    spelling = message.get("role") or message.get("from")
    role = _ROLES.get(spelling) if isinstance(spelling, str) else None
    if role is None:
        raise RowError(f"{where}: unknown role {brief(spelling)}; valid: {', '.join(_ROLES)}")
    content, calls = _content_and_calls(message, spelling == "function_call", where)
    train, weight = _train_and_weight(message, where)
    name = message.get("name")
    return Turn(
        role,
        require_text(content, where),
        train,
        weight,
        tuple(_call(call, where) for call in calls),
        name if isinstance(name, str) else None,
    )


def _content_and_calls(message: Row, is_call: bool, where: str) -> tuple[Any, Any]:
    """Content and tool calls. With `is_call` (ShareGPT), the content is the calls."""
    content = message.get("content")  # tables have null where a turn lacks a field
    content = message.get("value") if content is None else content
    calls = decode_json_text(message.get("tool_calls")) or ()
    if not isinstance(calls, list | tuple):
        raise RowError(f"{where}: tool_calls is a list of calls, this is {type(calls).__name__}")
    if is_call:
        decoded = decode_json_text(content)
        calls, content = (decoded if isinstance(decoded, list) and decoded else [decoded]), ""
    elif not calls and message.get("function_call") is not None:
        calls = [decode_json_text(message["function_call"])]
    if calls and content is None:
        content = ""
    if isinstance(content, list):
        content = _joined_parts(content, where)
    return content, calls


def _train_and_weight(message: Row, where: str) -> tuple[bool, float]:
    train, weight = message.get("train"), message.get("weight")
    train, weight = True if train is None else train, 1.0 if weight is None else weight
    if not isinstance(train, bool):
        raise RowError(f"{where}: train is true or false, this is {brief(train)}")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 <= weight <= MAX_WEIGHT:
        raise RowError(f"{where}: weight is a number of 0 to {MAX_WEIGHT}, this is {brief(weight)}")
    return train, float(weight)


def _joined_parts(parts: list[Any], where: str) -> str:
    for part in parts:
        if (
            not isinstance(part, Mapping)
            or part.get("type") != "text"
            or not isinstance(part.get("text"), str)
        ):
            raise RowError(f"{where}: only parts of type text can be trained")
    return "".join(part["text"] for part in parts)


def _call(call: Any, where: str) -> Mapping[str, Any]:
    """A tool call in OpenAI's form, from any spelling; its arguments become an object."""
    if not isinstance(call, Mapping):
        raise RowError(f"{where}: a tool call is an object with name and arguments")
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{where}: a tool call without a name")
    arguments = decode_json_text(function.get("arguments"))
    arguments = {} if arguments is None else arguments
    check_json(function["name"], f"{where}: the name of a tool call")
    check_json(arguments, f"{where}: the arguments of a tool call")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
