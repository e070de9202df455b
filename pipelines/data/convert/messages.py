"""Lists of messages, in the spellings of OpenAI, ShareGPT and others, become turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.core.conversation import Turn
from pipelines.data.convert.content_parts import Content, read_parts
from pipelines.data.convert.format_hints import keys_of
from pipelines.data.convert.loss_keys import LOSS_KEYS, masked_by_detail, train_and_weight
from pipelines.data.convert.row_checks import brief, require_text
from pipelines.data.convert.row_context import RowContext, is_blank
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.tool_calls import call_of, decode_json_text

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "model", "bot", "ai", "chatbot", "chatgpt", "bing", "bard"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "observation", "function", "function_response", "tool_response", "tool_result",
         "ipython"),
        "tool",
    ),
}  # fmt: skip
"""Role names that are known by themselves, in any letter case, with `-` and `_` as equals."""
_EXCHANGE = {"input": "user", "output": "assistant"}  # keys of a question with its answer
_ORDER = ("system", "user", "assistant", "tool")
_CALL_ROLES = ("function_call", "tool_call", "tool_calls")
_CONTENT_KEYS = ("content", "value", "text", "parts", "message")
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
_READ_KEYS = LOSS_KEYS | {
    "role", "from", "name", "tool_calls", "function_call",
    "id", "tool_call_id", "type",  # these say nothing that the order of turns does not
}  # fmt: skip


def turns_of(messages: Any, key: str, context: RowContext) -> tuple[Turn, ...]:
    """The turns of a list of messages, or of its JSON text. Raises RowError naming `key`."""
    messages = decode_json_text(messages)
    if isinstance(messages, Mapping):
        messages = _transposed(messages)
    if not isinstance(messages, list) or not messages:
        raise RowError(
            f"{key}: missing" if messages is None else f"{key}: expected a list of turns"
        )
    turns: list[Turn] = []
    roles = context.roles
    for i, message in enumerate(messages):
        if type(message) is dict and len(message) == 2:  # a role and a text, as nearly all have
            name, text = message.get("role"), message.get("content")
            if name is None:
                name, text = message.get("from"), message.get("value")
            if type(text) is str and type(name) is str and name in roles:
                turns.append(Turn(roles[name], text))
                continue
        _add_turns(turns, message, f"{key}[{i}]", key, context)
    return tuple(turns)


def _transposed(columns: Mapping[str, Any]) -> Any:
    """The messages of an object of lists, as a table of the datasets library may have them."""
    lists = list(columns.values())
    if not lists or not all(
        isinstance(each, list) and len(each) == len(lists[0]) for each in lists
    ):
        return columns
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _add_turns(turns: list[Turn], message: Any, where: str, path: str, context: RowContext) -> None:
    """Add the turn of a message, or its turns."""
    if not isinstance(message, Mapping):
        raise RowError(f"{where}: a turn is an object, this is {type(message).__name__}")
    # Tables have null where a turn lacks a field.
    message = {key: value for key, value in message.items() if value is not None}
    if pairs := _by_role(message, context):
        turns += pairs
        return
    role, is_call = _role(message, where, context)
    key = next((key for key in _CONTENT_KEYS if key in message), None)
    content = _content(message, key, is_call, where, path, context)
    if content.calls and role != "assistant":
        raise RowError(f"{where}: a tool call in a turn of the role {role}")
    turns += [Turn("tool", result) for result in content.results]
    if content.results and not content.text.strip():
        return
    train, weight = train_and_weight(message, where)
    if "train_detail" in message and role == "assistant":
        content.masked = masked_by_detail(message["train_detail"], message.get(key or ""), where)
    read = {*_READ_KEYS, key}
    if role == "assistant":
        read.update(THOUGHT_KEYS)
        content.reasoning = _thought(message, content, where)
    else:
        read.difference_update(_that_ask_to_train(message))
        train, weight, content.masked = True, 1.0, ()
    if not message.keys() <= read:
        context.note_unused(path, {k: v for k, v in message.items() if k not in read})
    name = message.get("name")
    turn = Turn(
        role,
        content.text,
        train,
        weight,
        tuple(content.calls),
        name if isinstance(name, str) else None,
        content.reasoning,
        content.masked,
    )
    if is_call and turns and turns[-1].role == "assistant":
        turn = _merged(turns.pop(), turn, where)
    turns.append(turn)


def _by_role(message: Mapping[str, Any], context: RowContext) -> list[Turn]:
    """The turns of an object such as {"human": "...", "assistant": "..."}, else none.

    The order of its keys does not count: a question precedes its answer.
    """
    if not message or "role" in message or "from" in message:
        return []
    roles = [_known_role(key, context) or _EXCHANGE.get(key) for key in message]
    if not all(roles) or not all(isinstance(text, str) for text in message.values()):
        return []
    turns = [Turn(role or "", text) for role, text in zip(roles, message.values(), strict=True)]
    turns = [turn for turn in turns if turn.role != "system" or turn.content.strip()]
    return sorted(turns, key=lambda turn: _ORDER.index(turn.role))


def _role(message: Mapping[str, Any], where: str, context: RowContext) -> tuple[str, bool]:
    """The role of a message, and whether its content is a tool call (ShareGPT)."""
    spelling = message.get("role") or message.get("from")
    if not isinstance(spelling, str):
        shown = ", ".join(map(str, message)) or "none"
        raise RowError(
            f"{where}: unknown role {brief(spelling)}"
            if spelling
            else f"{where}: a turn without a role, with the keys {shown}"
        )
    is_call = _plain(spelling) in _CALL_ROLES
    role = _known_role(spelling, context) or ("assistant" if is_call else None)
    if role is None:
        valid = ", ".join((*ROLES, *_CALL_ROLES))
        raise RowError(
            f"{where}: unknown role {brief(spelling)}; known: {valid}; others are mapped by the "
            "source's `roles`"
        )
    return role, is_call


def _known_role(spelling: Any, context: RowContext) -> str | None:
    if not isinstance(spelling, str):
        return None
    return context.roles.get(spelling) or ROLES.get(_plain(spelling))


def _plain(spelling: str) -> str:
    return spelling.strip().casefold().replace("-", "_").replace(" ", "_")


def _content(
    message: Mapping[str, Any],
    key: str | None,
    is_call: bool,
    where: str,
    path: str,
    context: RowContext,
) -> Content:
    """The content of a message, with its calls. With `is_call`, the content is the calls."""
    value = message[key] if key else None
    calls = decode_json_text(message.get("tool_calls")) or ()
    if not isinstance(calls, list | tuple):
        raise RowError(f"{where}: tool_calls is a list of calls, this is {type(calls).__name__}")
    if is_call and not calls:
        decoded = decode_json_text(value)
        calls, value = (decoded if isinstance(decoded, list) and decoded else [decoded]), ""
    elif not calls and "function_call" in message:
        calls = [decode_json_text(message["function_call"])]
    if value is None and calls:
        value = ""
    if value is None:
        raise RowError(f"{where}: no content and no tool calls, only the keys {keys_of(message)}")
    content = (
        read_parts(value, where, path, context)
        if isinstance(value, list)
        else Content(require_text(value, where))
    )
    content.calls += [call_of(call, where, f"{path}.tool_calls", context) for call in calls]
    return content


def _thought(message: Mapping[str, Any], content: Content, where: str) -> str:
    """The thought of an assistant turn, from its parts or from one of several keys."""
    texts = {content.reasoning} if content.reasoning else set()
    for key in THOUGHT_KEYS:
        if not is_blank(value := message.get(key)):
            texts.add(require_text(value, f"{where}: {key}"))
    if len(texts) > 1:
        raise RowError(f"{where}: several different thoughts")
    if texts and content.text.lstrip().startswith("<think>"):
        raise RowError(f"{where}: two thoughts, in the content and under a key of its own")
    return next(iter(texts), "")


def _that_ask_to_train(message: Mapping[str, Any]) -> list[str]:
    """The keys that ask to train a turn of another role than assistant, which is never trained."""
    return [key for key in LOSS_KEYS if message.get(key)]


def _merged(answer: Turn, call: Turn, where: str) -> Turn:
    """An answer and the call in the next message as one turn, which ends after the call."""
    if (answer.train, answer.weight) != (call.train, call.weight):
        raise RowError(f"{where}: a call continues the turn before it, but is trained differently")
    if call.reasoning and (answer.reasoning or answer.content or answer.tool_calls):
        raise RowError(f"{where}: a thought between the calls of one turn")
    return replace(
        answer,
        tool_calls=(*answer.tool_calls, *call.tool_calls),
        reasoning=answer.reasoning or call.reasoning,
    )
