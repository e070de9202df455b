"""One row of a known format becomes a Conversation. A row that cannot is refused with a RowError that says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.contracts import Conversation, Turn

Row = Mapping[str, Any]
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "system": "system", "developer": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool", "function_call": "assistant",
}  # fmt: skip


class RowError(ValueError):
    """Why one row cannot be used."""


def detect_format(row: Row) -> str:
    """The format that a row's keys show. Raises RowError naming the keys when none fits."""
    for name, keys in _KEYS.items():
        if keys <= row.keys():
            return name
    valid = "; ".join(f"{name} ({', '.join(sorted(keys))})" for name, keys in _KEYS.items())
    raise RowError(f"unknown format: the row has the keys {', '.join(map(str, row)) or '(none)'}; known: {valid}")


def to_conversation(row: Any, format: str = "auto", columns: Mapping[str, str] | None = None) -> Conversation:
    """Convert one row. `columns` maps a format's own keys to the row's. Raises RowError when the row does not fit."""
    if not isinstance(row, Mapping):
        raise RowError(f"a row is an object, this is {type(row).__name__}")
    if columns:
        row = {**row, **{key: row[column] for key, column in columns.items() if column in row}}
    conversation = _CONVERTERS[detect_format(row) if format == "auto" else format](row)
    _check_turns(conversation)
    return conversation


def _from_alpaca(row: Row) -> Conversation:
    turns = list(_system(row))
    for pair in row.get("history") or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("history: each entry is a pair of question and answer")
        turns += [Turn("user", _text(pair[0], "history")), Turn("assistant", _text(pair[1], "history"))]
    instruction, extra = _text(row.get("instruction"), "instruction"), row.get("input")
    question = (
        f"{instruction}\n\n{_text(extra, 'input')}" if extra and instruction else instruction or _text(extra, "input")
    )
    return Conversation((*turns, Turn("user", question), _answer(row, "output")))


def _from_messages(row: Row) -> Conversation:
    messages = row["messages"] if "messages" in row else row["conversations"]
    return Conversation(_turns(messages, "messages"), _tools(row))


def _from_sharegpt(row: Row) -> Conversation:
    turns = _turns(row["conversations"], "conversations")
    if not any(turn.role == "system" for turn in turns):
        turns = (*_system(row), *turns)
    return Conversation(turns, _tools(row))


def _from_prompt_completion(row: Row) -> Conversation:
    prompt, completion = row.get("prompt"), row.get("completion")
    before = _turns(prompt, "prompt") if isinstance(prompt, list) else (Turn("user", _text(prompt, "prompt")),)
    if isinstance(completion, list):
        # What the prompt holds is context: only the completion's answers are trained.
        context = tuple(Turn(t.role, t.content, False, t.weight, t.tool_calls, t.name) for t in before)
        return Conversation((*_system(row), *context, *_turns(completion, "completion")), _tools(row))
    return Conversation((*_system(row), *before, _answer(row, "completion")), _tools(row))


def _from_question_answer(row: Row) -> Conversation:
    return Conversation((*_system(row), Turn("user", _text(row.get("question"), "question")), _answer(row, "answer")))


def _turns(messages: Any, key: str) -> tuple[Turn, ...]:
    messages = _decoded(messages)
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{key}: expected a list of turns")
    return tuple(_turn(message, f"{key}[{i}]") for i, message in enumerate(messages))


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise RowError(f"{where}: a turn is an object, this is {type(message).__name__}")
    given = message.get("role", message.get("from"))
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise RowError(f"{where}: unknown role {given!r}; valid: {', '.join(_ROLES)}")
    content = message.get("content", message.get("value"))
    calls = _decoded(message.get("tool_calls")) or ()
    if given == "function_call":
        calls, content = [_call(_decoded(content), where)], ""
    if calls and content is None:
        content = ""
    if isinstance(content, list):
        content = _joined_parts(content, where)
    train, weight = message.get("train", True), message.get("weight", 1.0)
    if not isinstance(train, bool):
        raise RowError(f"{where}: train is true or false, this is {train!r}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise RowError(f"{where}: weight is a number of at least 0, this is {weight!r}")
    checked = tuple(_call(call, where) for call in calls)
    name = message.get("name")
    return Turn(role, _text(content, where), train, float(weight), checked, name if isinstance(name, str) else None)


def _joined_parts(parts: list[Any], where: str) -> str:
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RowError(f"{where}: only parts of type text can be trained")
    return "".join(part["text"] for part in parts)


def _call(call: Any, where: str) -> Mapping[str, Any]:
    """An OpenAI-style tool call from any of its spellings; the arguments become an object."""
    if not isinstance(call, Mapping):
        raise RowError(f"{where}: a tool call is an object with name and arguments")
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{where}: a tool call without a name")
    arguments = function.get("arguments", {})
    decoded = _decoded(arguments)
    return {"type": "function", "function": {"name": function["name"], "arguments": decoded}}


def _tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    tools = _decoded(row.get("tools")) or ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("tools: expected a list of objects, or the same as JSON text")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def _decoded(value: Any) -> Any:
    """JSON text as the value that it spells; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _system(row: Row) -> tuple[Turn, ...]:
    system = row.get("system")
    return (Turn("system", _text(system, "system")),) if system else ()


def _answer(row: Row, key: str) -> Turn:
    answer = _text(row.get(key), key)
    if not answer.strip():
        raise RowError(f"{key}: empty, there is nothing to learn")
    return Turn("assistant", answer)


def _text(value: Any, key: str) -> str:
    if value is None:
        raise RowError(f"{key}: missing")
    if not isinstance(value, str):
        raise RowError(f"{key}: expected text, this is {type(value).__name__}")
    return value


def _check_turns(conversation: Conversation) -> None:
    trainable, num_systems = False, 0
    for turn in conversation.turns:
        content = turn.content
        if turn.role == "assistant":
            trainable |= turn.train and turn.weight > 0 and bool(turn.tool_calls or content.strip())
        elif turn.role == "system":
            num_systems += 1
        if "\0" in content:
            raise RowError("the text holds a NUL character")
        if not content.isascii():
            _check_utf8(content, turn.role)
    if not trainable:
        raise RowError("no assistant turn to train on")
    if num_systems > 1:
        raise RowError("more than one system turn")


def _check_utf8(content: str, role: str) -> None:
    try:
        content.encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        what = f"the byte {code - 0xDC00:#04x}" if 0xDC80 <= code <= 0xDCFF else f"half a surrogate pair, U+{code:04X}"
        raise RowError(f"the text is not UTF-8: {what} in {role}") from None


_KEYS: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "sharegpt": frozenset({"conversations"}),
    "prompt_completion": frozenset({"prompt", "completion"}),
    "alpaca": frozenset({"instruction", "output"}),
    "question_answer": frozenset({"question", "answer"}),
}
_CONVERTERS: Mapping[str, Callable[[Row], Conversation]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
    "question_answer": _from_question_answer,
}
