"""One row of a known format becomes a Conversation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from pipelines.core.conversation import Conversation, Turn
from pipelines.data.convert.content_parts import read_parts
from pipelines.data.convert.format_hints import LIST_KEYS
from pipelines.data.convert.format_keys import (
    LISTS,
    PAIRS,
    Row,
    map_columns,
    standard_row,
    unread_keys,
)
from pipelines.data.convert.loss_keys import LOSS_KEYS
from pipelines.data.convert.messages import ROLES, turns_of
from pipelines.data.convert.row_checks import (
    brief,
    check_conversation,
    is_empty,
    require_text,
)
from pipelines.data.convert.row_context import RowContext, is_blank
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.tool_calls import calls_in_text, decode_json_text, tools_of

# Keys of an answer, of which a row may have several.
_ANSWERS = frozenset({"completion", "output", "answer", "response", "solution"})


def to_conversation(
    row: Any,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    from_table: bool = False,
) -> Conversation:
    """Convert one row.

    `columns` maps keys of the format to keys of the row, `roles` names of roles to user, assistant,
    system or tool. `from_table` says that the row came from Arrow, which fills absent fields with
    null. Raises RowError when the row does not fit.
    """
    if type(row) is not dict and not isinstance(row, Mapping):
        raise RowError(f"a row is an object, this is {type(row).__name__}")
    columns = columns or {}
    mapped = map_columns(row, columns) if columns else row
    name, standard = standard_row(mapped, format, columns)
    context = RowContext({**ROLES, **roles} if roles else ROLES, from_table)
    if name != "text" and ("tools" in standard or "functions" in standard):
        context.tools = tools_of(standard, context)
    turns = _trained(_CONVERTERS[name](standard, context))
    unused = _unused(standard, name, turns, context)
    if unused:
        _check_answers(name, mapped, turns, unused, columns)
    conversation = Conversation(turns, context.tools, unused_keys=unused)
    check_conversation(conversation)
    for key in unused:
        if key in columns:
            raise RowError(
                f"columns: {key}: {columns[key]} does nothing, because rows of the format {name} "
                f"have no {key}; remove it, or map the keys of another format"
            )
    return conversation


def _trained(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns; answers that have nothing to learn are context.

    The stop token of an empty answer would teach the model to say nothing.
    """
    for turn in turns:
        if turn.role == "assistant" and turn.train and _has_nothing_to_learn(turn):
            break
    else:
        return turns
    return tuple(
        replace(turn, train=False, masked=())
        if turn.role == "assistant" and _has_nothing_to_learn(turn)
        else turn
        for turn in turns
    )


def _has_nothing_to_learn(turn: Turn) -> bool:
    """True if an answer is empty or no character of it is in the loss."""
    if turn.masked == ((0, len(turn.content)),) and not turn.tool_calls:
        return True
    return is_empty(turn)


def _unused(row: Row, name: str, turns: tuple[Turn, ...], context: RowContext) -> tuple[str, ...]:
    """The keys that nothing read. A text that a turn repeats has been read elsewhere."""
    unread = unread_keys(tuple(row), name)
    for key in unread:
        value = row[key]
        if not is_blank(value) and not any(value == turn.content for turn in turns):
            context.unused[str(key)] = None
    return tuple(context.unused)


def _check_answers(
    name: str, row: Row, turns: tuple[Turn, ...], unused: tuple[str, ...], columns: Collection[str]
) -> None:
    """Refuse a row with an answer under another key than its turns or its answer."""
    others = [key for key in unused if key in _ANSWERS or key.startswith("chosen")]
    if not others:
        return
    if name in LISTS and turns[-1].role == "user":
        key = next(key for key in (LISTS[name], *LIST_KEYS) if key in row)
        raise RowError(
            f"{key} end in a question, and the answer is under {others[0]}: to train it, set the "
            f"source's `columns: {{prompt: {key}, completion: {others[0]}}}`"
        )
    others = [key for key in others if key in _ANSWERS and isinstance(row.get(key), str)]
    if others and name in PAIRS and (own := PAIRS[name][1]) not in columns:
        proposals = " or ".join(f"`columns: {{{own}: {key}}}`" for key in (own, *others))
        raise RowError(
            f"several answers: {own}, {', '.join(others)}; name the one to train: {proposals} of "
            "the source"
        )


def _from_list(key: str) -> Callable[[Row, RowContext], tuple[Turn, ...]]:
    """The converter of a format whose turns are a list."""

    def convert(row: Row, context: RowContext) -> tuple[Turn, ...]:
        return _with_system(row, turns_of(row.get(key), key, context), context)

    return convert


def _from_pair(question_key: str, answer_key: str) -> Callable[[Row, RowContext], tuple[Turn, ...]]:
    """The converter of a format with a question and an answer; both may be lists of turns."""

    def convert(row: Row, context: RowContext) -> tuple[Turn, ...]:
        question, answer = row.get(question_key), row.get(answer_key)
        if isinstance(question, list) and question_key == "prompt":
            # The prompt is context: only the answers of the completion enter the loss.
            before = tuple(
                replace(turn, train=False, masked=()) if turn.role == "assistant" else turn
                for turn in turns_of(question, question_key, context)
            )
            _note(row, ("history", "context", "input"), context)
            for key in _asking_to_train(question):
                context.unused[f"{question_key}.{key}"] = None
        else:
            text = _question(row, question_key)
            before = (*_history(row, context), Turn("user", text))
        if isinstance(answer, Mapping) and not answer.keys().isdisjoint(("role", "from")):
            answer = [answer]
        is_list = isinstance(answer, list) and not all(isinstance(each, str) for each in answer)
        if is_list and answer_key == "completion":
            after = turns_of(answer, answer_key, context)
            _note(row, ("reasoning",), context)
        else:
            after = (_answer(row, answer_key, context),)
        return _with_system(row, (*before, *after), context)

    return convert


def _asking_to_train(messages: list[Any]) -> list[str]:
    """The keys by which messages ask to be trained."""
    return [
        key
        for message in messages
        if isinstance(message, Mapping)
        for key in LOSS_KEYS.intersection(message)
        if message[key]
    ]


def _from_text(row: Row, context: RowContext) -> tuple[Turn, ...]:
    text = require_text(row.get("text"), "text")
    if not text.strip():
        raise RowError("text: empty, there is nothing to learn")
    return (Turn("text", text),)


def _question(row: Row, key: str) -> str:
    """The question, after its context and before its additional input."""
    question = require_text(row.get(key), key)
    context, extra = row.get("context"), row.get("input")
    if context is not None and context != "":
        context = require_text(context, "context")
        question = f"{context}\n\n{question}" if question else context
    if extra is not None and extra != "":
        extra = require_text(extra, "input")
        question = f"{question}\n\n{extra}" if question else extra
    if not question and key == "instruction":
        raise RowError("instruction: empty, and there is no input")
    return question


def _history(row: Row, context: RowContext) -> list[Turn] | tuple[Turn, ...]:
    """The turns of earlier exchanges: pairs of question and answer, or a list of turns."""
    history = decode_json_text(row.get("history"))
    if not history:
        return ()
    if not isinstance(history, list | tuple):
        raise RowError(f"history: expected a list of pairs, this is {type(history).__name__}")
    if all(isinstance(turn, Mapping) for turn in history):
        return turns_of(list(history), "history", context)
    turns = list[Turn]()
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("history: each entry is a pair of question and answer")
        turns += [
            Turn("user", require_text(pair[0], "history")),
            Turn("assistant", require_text(pair[1], "history")),
        ]
    return turns


def _answer(row: Row, key: str, context: RowContext) -> Turn:
    answer = require_text(_only_text(row.get(key), key), key)
    if not answer.strip():
        raise RowError(f"{key}: empty, there is nothing to learn")
    thought = row.get("reasoning")
    if is_blank(thought) and not context.tools:
        return Turn("assistant", answer)
    thought = "" if is_blank(thought) else require_text(thought, "reasoning")
    if thought and answer.lstrip().startswith("<think>"):
        raise RowError(f"{key}: two thoughts, in the text and under a key of its own")
    calls = calls_in_text(answer, key, context)
    return Turn("assistant", "" if calls else answer, tool_calls=calls, reasoning=thought)


def _only_text(value: Any, key: str) -> Any:
    """The text of an answer that is a list of equal texts, or SQuAD's object with such a list."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        kind = type(value).__name__
        raise RowError(
            f"{key}: expected text, this is {kind} ({brief(value)}); write the answer as a text, "
            "and instead of the number of a choice the choice itself"
        )
    texts = value.get("text") if isinstance(value, Mapping) else value
    if not isinstance(texts, list):
        return value
    if len(different := {text for text in texts if isinstance(text, str)}) == 1:
        return different.pop()
    raise RowError(
        f"{key}: expected one text, these are {len(texts)} values: {len(different)} texts"
    )


def _with_system(row: Row, turns: tuple[Turn, ...], context: RowContext) -> tuple[Turn, ...]:
    """The turns, after the row's system text unless they have a system turn of their own."""
    system = row.get("system")
    if system is None or system == "":
        return turns
    if isinstance(system, Mapping) and isinstance(system.get("parts"), list):  # Gemini
        system = system["parts"]
    if isinstance(system, list):  # Anthropic and Bedrock
        system = read_parts(system, "system", "system", context).text
    system = require_text(system, "system")
    own = [turn.content for turn in turns if turn.role == "system"]
    if not own:
        return (Turn("system", system), *turns)
    if system not in own and system.strip():
        context.unused["system"] = None
    return turns


def _note(row: Row, keys: tuple[str, ...], context: RowContext) -> None:
    """Add the keys that are not read next to a list of turns, unless they are empty."""
    for key in keys:
        if not is_blank(row.get(key)):
            context.unused[key] = None


_CONVERTERS: Mapping[str, Callable[[Row, RowContext], tuple[Turn, ...]]] = {
    **{name: _from_list(key) for name, key in LISTS.items()},
    **{name: _from_pair(*keys) for name, keys in PAIRS.items()},
    "text": _from_text,
}
