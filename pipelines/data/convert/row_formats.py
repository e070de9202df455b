"""One row of a known format becomes a Conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pipelines.core.conversation import Conversation, Turn
from pipelines.data.convert.format_keys import Row, detect_format, map_columns
from pipelines.data.convert.messages import decode_json_text, tools_of, turns_of
from pipelines.data.convert.row_checks import check_conversation, is_empty, require_text
from pipelines.data.convert.row_error import RowError


def to_conversation(
    row: Any, format: str = "auto", columns: Mapping[str, str] | None = None
) -> Conversation:
    """Convert one row; `columns` maps keys of the format to keys of the row.

    Raises RowError when the row does not fit.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"a row is an object, this is {type(row).__name__}")
    if columns:
        row = map_columns(row, columns)
    conversation = _CONVERTERS[detect_format(row, columns) if format == "auto" else format](row)
    check_conversation(conversation)
    if any(turn.train and is_empty(turn) for turn in conversation.turns):
        # The stop token of an empty answer would teach the model to say nothing.
        turns = (
            replace(turn, train=turn.train and not is_empty(turn)) for turn in conversation.turns
        )
        return replace(conversation, turns=tuple(turns))
    return conversation


def _from_messages(row: Row) -> Conversation:
    messages = row["messages"] if "messages" in row else row.get("conversations")
    return Conversation(_with_system(row, turns_of(messages, "messages")), tools_of(row))


def _from_sharegpt(row: Row) -> Conversation:
    turns = turns_of(row.get("conversations"), "conversations")
    return Conversation(_with_system(row, turns), tools_of(row))


def _from_prompt_completion(row: Row) -> Conversation:
    prompt, completion = row.get("prompt"), row.get("completion")
    before = (
        turns_of(prompt, "prompt")
        if isinstance(prompt, list)
        else (Turn("user", require_text(prompt, "prompt")),)
    )
    # The prompt is context: only the answers of the completion enter the loss.
    context = tuple(
        replace(turn, train=False) if turn.role == "assistant" else turn for turn in before
    )
    after = (
        turns_of(completion, "completion")
        if isinstance(completion, list)
        else (_answer(row, "completion"),)
    )
    return Conversation(_with_system(row, (*context, *after)), tools_of(row))


def _from_alpaca(row: Row) -> Conversation:
    turns = list(_system(row))
    history = decode_json_text(row.get("history")) or ()
    if not isinstance(history, list | tuple):
        raise RowError(f"history: expected a list of pairs, this is {type(history).__name__}")
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("history: each entry is a pair of question and answer")
        turns += [
            Turn("user", require_text(pair[0], "history")),
            Turn("assistant", require_text(pair[1], "history")),
        ]
    instruction = require_text(row.get("instruction"), "instruction")
    extra = row.get("input")
    question = (
        f"{instruction}\n\n{require_text(extra, 'input')}"
        if extra and instruction
        else instruction or require_text(extra, "input")
    )
    return Conversation((*turns, Turn("user", question), _answer(row, "output")))


def _from_question_answer(row: Row) -> Conversation:
    question = Turn("user", require_text(row.get("question"), "question"))
    return Conversation((*_system(row), question, _answer(row, "answer")))


def _system(row: Row) -> tuple[Turn, ...]:
    system = row.get("system")
    return (Turn("system", require_text(system, "system")),) if system else ()


def _with_system(row: Row, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns, after the row's system text unless they have a system turn of their own."""
    return turns if any(turn.role == "system" for turn in turns) else (*_system(row), *turns)


def _answer(row: Row, key: str) -> Turn:
    answer = require_text(row.get(key), key)
    if not answer.strip():
        raise RowError(f"{key}: empty, there is nothing to learn")
    return Turn("assistant", answer)


_CONVERTERS: Mapping[str, Callable[[Row], Conversation]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
    "question_answer": _from_question_answer,
}
