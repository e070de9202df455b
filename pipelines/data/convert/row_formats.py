"""One row of a known format becomes a Conversation. A row that cannot is refused with a RowError that says why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.chat import MARKS
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError

Row = Mapping[str, Any]
MAX_TURNS = 1024  # masks take one render a turn, so a row's cost grows with the square of this
MAX_WEIGHT = 1000  # as of a source; beyond it one row drowns the loss
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "system": "system", "developer": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool", "function": "tool", "function_call": "assistant",
}  # fmt: skip


class RowError(ValueError):
    """Why one row cannot be used."""


def detect_format(row: Row, mapped: Mapping[str, str] | None = None) -> str:
    """The format that a row's keys show; of several that with most `mapped` keys, then one whose keys all have a value.
    Raises RowError naming the keys when none fits.
    """
    fitting = [name for name, keys in _KEYS.items() if keys <= row.keys()]
    if len(fitting) > 1:
        # Tables fill with null what a row does not have.
        fitting.sort(
            key=lambda name: (
                -len(_KEYS[name] & (mapped or {}).keys()),
                any(row[k] is None for k in _KEYS[name]),
            )
        )
    if fitting:
        return fitting[0]
    valid = "; ".join(f"{name} ({', '.join(sorted(keys))})" for name, keys in _KEYS.items())
    raise RowError(
        f"unknown format: the row has the keys {', '.join(map(str, row)) or '(none)'}; known: {valid}; for others set "
        "the source's `columns`"
    )


def to_conversation(
    row: Any, format: str = "auto", columns: Mapping[str, str] | None = None
) -> Conversation:
    """Convert one row. `columns` maps a format's own keys to the row's. Raises RowError when the row does not fit."""
    if not isinstance(row, Mapping):
        raise RowError(f"a row is an object, this is {type(row).__name__}")
    if columns:
        row = {**row, **_mapped(row, columns)}
    conversation = _CONVERTERS[detect_format(row, columns) if format == "auto" else format](row)
    _check_turns(conversation)
    if any(
        turn.role == "assistant" and turn.train and _is_empty(turn) for turn in conversation.turns
    ):
        # Its stop token alone would teach to say nothing.
        turns = (
            replace(turn, train=turn.train and not _is_empty(turn)) for turn in conversation.turns
        )
        return replace(conversation, turns=tuple(turns))
    return conversation


def check_columns(maps: Sequence[Mapping[str, str]]) -> None:
    """Raise UserError for a key in a source's `columns` that no format has: it would map to nothing."""
    valid = sorted(_OPTIONAL.union(*_KEYS.values()))
    for i, columns in enumerate(maps):
        for key in columns:
            if key not in valid:
                raise UserError(
                    f"data.sources.{i}.columns: no format has the key {key}; valid: {', '.join(valid)}"
                )


def _mapped(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    for key, column in columns.items():
        if column not in row and key not in _OPTIONAL:
            raise RowError(
                f"columns: the row has no {column} for {key}, but {', '.join(map(str, row)) or '(none)'}"
            )
    return {key: row[column] for key, column in columns.items() if column in row}


def _from_alpaca(row: Row) -> Conversation:
    turns = list(_system(row))
    history = _decoded(row.get("history")) or ()
    if not isinstance(history, list | tuple):
        raise RowError(f"history: expected a list of pairs, this is {type(history).__name__}")
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("history: each entry is a pair of question and answer")
        turns += [
            Turn("user", _text(pair[0], "history")),
            Turn("assistant", _text(pair[1], "history")),
        ]
    instruction, extra = _text(row.get("instruction"), "instruction"), row.get("input")
    question = (
        f"{instruction}\n\n{_text(extra, 'input')}"
        if extra and instruction
        else instruction or _text(extra, "input")
    )
    return Conversation((*turns, Turn("user", question), _answer(row, "output")))


def _from_messages(row: Row) -> Conversation:
    messages = row["messages"] if "messages" in row else row.get("conversations")
    return Conversation(_with_system(row, _turns(messages, "messages")), _tools(row))


def _from_sharegpt(row: Row) -> Conversation:
    return Conversation(
        _with_system(row, _turns(row.get("conversations"), "conversations")), _tools(row)
    )


def _from_prompt_completion(row: Row) -> Conversation:
    prompt, completion = row.get("prompt"), row.get("completion")
    before = (
        _turns(prompt, "prompt")
        if isinstance(prompt, list)
        else (Turn("user", _text(prompt, "prompt")),)
    )
    # What the prompt holds is context: only the completion's answers are trained.
    context = tuple(
        replace(turn, train=False) if turn.role == "assistant" else turn for turn in before
    )
    after = (
        _turns(completion, "completion")
        if isinstance(completion, list)
        else (_answer(row, "completion"),)
    )
    return Conversation(_with_system(row, (*context, *after)), _tools(row))


def _from_question_answer(row: Row) -> Conversation:
    return Conversation(
        (
            *_system(row),
            Turn("user", _text(row.get("question"), "question")),
            _answer(row, "answer"),
        )
    )


def _turns(messages: Any, key: str) -> tuple[Turn, ...]:
    messages = _decoded(messages)
    if not isinstance(messages, list) or not messages:
        raise RowError(
            f"{key}: missing" if messages is None else f"{key}: expected a list of turns"
        )
    return tuple(_turn(message, f"{key}[{i}]") for i, message in enumerate(messages))


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise RowError(f"{where}: a turn is an object, this is {type(message).__name__}")
    given = message.get("role") or message.get("from")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise RowError(f"{where}: unknown role {_brief(given)}; valid: {', '.join(_ROLES)}")
    content = message.get("content")  # tables fill what a turn does not have with null
    content = message.get("value") if content is None else content
    calls = _decoded(message.get("tool_calls")) or ()
    if not isinstance(calls, list | tuple):
        raise RowError(f"{where}: tool_calls is a list of calls, this is {type(calls).__name__}")
    if given == "function_call":
        called = _decoded(content)
        calls, content = (called if isinstance(called, list) and called else [called]), ""
    elif not calls and message.get("function_call") is not None:
        calls = [_decoded(message["function_call"])]
    if calls and content is None:
        content = ""
    if isinstance(content, list):
        content = _joined_parts(content, where)
    train, weight = message.get("train"), message.get("weight")
    train, weight = True if train is None else train, 1.0 if weight is None else weight
    if not isinstance(train, bool):
        raise RowError(f"{where}: train is true or false, this is {_brief(train)}")
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not 0 <= weight <= MAX_WEIGHT
    ):
        raise RowError(
            f"{where}: weight is a number of 0 to {MAX_WEIGHT}, this is {_brief(weight)}"
        )
    checked = tuple(_call(call, where) for call in calls)
    name = message.get("name")
    return Turn(
        role,
        _text(content, where),
        train,
        float(weight),
        checked,
        name if isinstance(name, str) else None,
    )


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
    """An OpenAI-style tool call from any of its spellings; the arguments become an object."""
    if not isinstance(call, Mapping):
        raise RowError(f"{where}: a tool call is an object with name and arguments")
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{where}: a tool call without a name")
    arguments = _decoded(function.get("arguments"))
    arguments = {} if arguments is None else arguments
    _check_json(function["name"], f"{where}: the name of a tool call")
    _check_json(arguments, f"{where}: the arguments of a tool call")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    tools = row.get("functions") if row.get("tools") is None else row["tools"]
    tools = _decoded(tools) or ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("tools: expected a list of objects, or the same as JSON text")
    _check_json(tools, "tools")
    return tuple(
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    )


def _decoded(value: Any) -> Any:
    """JSON text as the value that it spells; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _system(row: Row) -> tuple[Turn, ...]:
    system = row.get("system")
    return (Turn("system", _text(system, "system")),) if system else ()


def _with_system(row: Row, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns behind the row's system text, if they have no system turn of their own."""
    return turns if any(turn.role == "system" for turn in turns) else (*_system(row), *turns)


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


def is_trained(turn: Turn) -> bool:
    """Whether it is an answer that the loss shall see."""
    return turn.role == "assistant" and turn.train and turn.weight > 0 and not _is_empty(turn)


def _is_empty(turn: Turn) -> bool:
    """Whether an assistant turn says nothing and calls nothing."""
    return turn.role == "assistant" and not turn.tool_calls and not turn.content.strip()


def _check_turns(conversation: Conversation) -> None:
    trainable, num_systems = False, 0
    if len(conversation.turns) > MAX_TURNS:
        raise RowError(f"{len(conversation.turns)} turns, the limit is {MAX_TURNS}")
    for turn in conversation.turns:
        if turn.role == "assistant":
            trainable |= is_trained(turn)
        elif turn.role == "system":
            num_systems += 1
        _check_text(turn.content, turn.role)
        if turn.name:
            _check_text(turn.name, "name")
    if not trainable:
        raise RowError("no assistant turn to train on")
    if num_systems > 1:
        raise RowError("more than one system turn")


def _check_text(text: str, where: str) -> None:
    if "\0" in text:
        raise RowError(f"the text holds a NUL character in {where}")
    if text.isascii():
        return
    if mark := MARKS.search(text):
        raise RowError(
            f"the text holds the Unicode noncharacter U+{ord(mark.group()):04X} in {where}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        what = (
            f"the byte {code - 0xDC00:#04x}"
            if 0xDC80 <= code <= 0xDCFF
            else f"half a surrogate pair, U+{code:04X}"
        )
        raise RowError(f"the text is not UTF-8: {what} in {where}") from None


def _check_json(value: Any, where: str) -> None:
    """Refuse what has no JSON form (a table's dates, bytes and NaN) and text that cannot be encoded."""
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_json(str(key), where)
            _check_json(inner, where)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_json(inner, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"{where}: {value} is not JSON")
    elif value is not None and not isinstance(value, bool | int | float):
        raise RowError(f"{where}: a value of type {type(value).__name__} is not JSON")


def _brief(value: Any) -> str:
    text = (
        repr(value)
        if not isinstance(value, int) or value.bit_length() < 200
        else "a number of many digits"
    )
    return text if len(text) <= 60 else f"{text[:60]}..."


_KEYS: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "sharegpt": frozenset({"conversations"}),
    "prompt_completion": frozenset({"prompt", "completion"}),
    "alpaca": frozenset({"instruction", "output"}),
    "question_answer": frozenset({"question", "answer"}),
}
_OPTIONAL = frozenset({"input", "system", "history", "tools", "functions"})
_CONVERTERS: Mapping[str, Callable[[Row], Conversation]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
    "question_answer": _from_question_answer,
}
