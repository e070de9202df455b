"""The keys of each row format: how a row's format is detected and how `columns` maps other keys.

Imports nothing heavy, so that a recipe's `columns` can be checked before any work.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipelines.config.schema.data import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.convert.format_hints import (
    ANSWER_KEYS,
    LIST_KEYS,
    QUESTION_KEYS,
    hint_for,
    keys_of,
)
from pipelines.data.convert.row_context import is_blank
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.unused_keys import meaning

Row = Mapping[str, Any]
LISTS = {"messages": "messages", "sharegpt": "conversations"}
PAIRS = {
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "question_answer": ("question", "answer"),
}
FORMAT_KEYS: Mapping[str, frozenset[str]] = {
    **{name: frozenset({key}) for name, key in LISTS.items()},
    **{name: frozenset(keys) for name, keys in PAIRS.items()},
    "text": frozenset({"text"}),
}
_OF_ALL_CHATS = {"system", "tools", "functions"}
OPTIONAL_KEYS = frozenset({*_OF_ALL_CHATS, "input", "context", "history", "reasoning"})
READ_KEYS: Mapping[str, frozenset[str]] = {
    **{name: FORMAT_KEYS[name] | _OF_ALL_CHATS for name in LISTS},
    **{name: FORMAT_KEYS[name] | OPTIONAL_KEYS for name in PAIRS},
    "text": FORMAT_KEYS["text"],
}
"""The keys that the converter of a format reads."""
# Other names of optional keys.
_ALIASES = {
    "system": ("system_prompt", "system_message", "system_instruction", "systemInstruction"),
    "reasoning": ("reasoning_content", "thinking"),
}
_WEAK_QUESTIONS = ("input", "inputs")  # a question unless there is another, else an addition to it
# A row with one of these keys is not plain text, although it has a key `text`.
_NOT_TEXT = frozenset().union(
    *FORMAT_KEYS.values(), QUESTION_KEYS, ANSWER_KEYS, LIST_KEYS, OPTIONAL_KEYS,
    ("role", "from", "speaker", "parent_id", "summary", "translation"),
) - {"text"}  # fmt: skip


def check_columns(sources: Sequence[SourceConfig]) -> None:
    """Raise UserError for a key in a source's `columns` that its format, or every format, lacks."""
    for i, source in enumerate(sources):
        for key in source.columns:
            valid = _mappable(source.format)
            if key not in valid:
                lacks = (
                    "no format has the key"
                    if source.format == "auto"
                    else f"the format {source.format} has no key"
                )
                raise UserError(
                    f"data.sources.{i}.columns: {lacks} {key}; valid: {', '.join(sorted(valid))}"
                )


def map_columns(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the values of mapped columns under the format's own keys alone.

    A column such as `body.messages` lies in an object of the row. Raises RowError when the row
    lacks a column of a required key, or has one of nearly its name.
    """
    row = opened(row, columns.values())
    for key, column in columns.items():
        if column in row:
            continue
        close = difflib.get_close_matches(column, map(str, row), 1, 0.8)
        if key not in OPTIONAL_KEYS or close:
            raise RowError(f"columns: the row has no {column} for {key}, but {keys_of(row)}")
    moved = {column for column in columns.values() if column in row} - columns.keys()
    mapped = {key: row[column] for key, column in columns.items() if column in row}
    return {**{key: value for key, value in row.items() if key not in moved}, **mapped}


def opened(row: Row, columns: Collection[str]) -> Row:
    """The row with the keys of the objects in which columns lie, such as `body.messages`."""
    for column in columns:
        while column not in row and (outer := _object_around(row, column)):
            inner = {f"{outer}.{key}": value for key, value in row[outer].items()}
            row = {key: value for key, value in row.items() if key != outer} | inner
    return row


def _object_around(row: Row, column: str) -> str | None:
    """The key of an object in which a column lies."""
    parts = column.split(".")
    paths = [".".join(parts[:i]) for i in range(1, len(parts))]
    return next((path for path in paths if isinstance(row.get(path), Mapping)), None)


def standard_row(row: Row, format: str, mapped: Collection[str] = ()) -> tuple[str, Row]:
    """The format of a row, and the row with the format's own names of its keys.

    Keys with null do not count: tables have null where a row lacks a column. `format` auto detects
    the format. If several fit, the one with the most `mapped` keys is taken. Raises RowError when
    none fits, or when several do.
    """
    filled = row
    if None in row.values():
        filled = {key: value for key, value in row.items() if value is not None}
    if name := _format_of(tuple(filled), format):  # nearly all rows
        return name, filled
    if format == "auto":
        format, renames = _detected(filled, mapped) or _detected(row, mapped) or ("", {})
        if not format:
            raise RowError(f"unknown format: the row has the keys {keys_of(row)}; {hint_for(row)}")
    else:
        renames = {} if filled.keys() >= FORMAT_KEYS[format] else _renames_to(format, filled)
    if renames:
        old = set(renames.values())
        filled = {key: value for key, value in filled.items() if key not in old}
        filled |= {key: row[column] for key, column in renames.items()}
    for key, alias in _aliases(tuple(filled), format):
        filled = _moved(filled, key, alias)
    return format, filled


def detect_format(row: Row, columns: Mapping[str, str] | None = None) -> str:
    """The format of a row whose keys `columns` maps. Raises RowError as `standard_row`."""
    columns = columns or {}
    return standard_row(map_columns(row, columns), "auto", columns)[0]


@functools.lru_cache(4096)
def unread_keys(keys: tuple[str, ...], format: str) -> tuple[str, ...]:
    """The keys that the converter of a format does not read."""
    return tuple(key for key in keys if key not in READ_KEYS[format])


def _mappable(format: str) -> frozenset[str]:
    """The keys of a format that `columns` may map, in all their spellings."""
    if format == "auto":
        return frozenset().union(*map(_mappable, FORMAT_KEYS))
    keys = set(READ_KEYS[format])
    if format in PAIRS:
        keys |= QUESTION_KEYS | ANSWER_KEYS
    elif format in LISTS:
        keys |= LIST_KEYS
    return frozenset(keys).union(*(names for key, names in _ALIASES.items() if key in keys))


@functools.lru_cache(4096)
def _format_of(keys: tuple[str, ...], format: str) -> str:
    """The format of rows with these keys, if it follows from them and all have their own names."""
    fitting = _fitting(keys) if format == "auto" else (format,)
    if len(fitting) != 1 or not FORMAT_KEYS[fitting[0]] <= set(keys):
        return ""
    return "" if _aliases(keys, fitting[0]) else fitting[0]


def _detected(row: Row, mapped: Collection[str]) -> tuple[str, dict[str, str]] | None:
    """The format of a row, and the keys of the row for those of the format where they differ."""
    fitting = _fitting(tuple(row))
    if len(fitting) == 1:
        return fitting[0], {}
    if fitting:
        return _preferred(row, fitting, mapped), {}
    lists = [key for key in LIST_KEYS if isinstance(row.get(key), list)]
    if len(lists) == 1:
        return "messages", {"messages": lists[0]}
    if pair := _pair(row, mapped):
        own = [name for name, keys in PAIRS.items() if keys[0] == pair[0]]
        format = own[0] if own else "prompt_completion"
        return format, dict(zip(PAIRS[format], pair, strict=True))
    if "text" in row and ("text" in mapped or not any(map(_is_not_of_text, row))):
        return "text", {}
    return None


@functools.lru_cache(4096)
def _fitting(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The formats except text whose keys a row has."""
    names = frozenset(keys)
    return tuple(name for name, own in FORMAT_KEYS.items() if own <= names and name != "text")


def _preferred(row: Row, fitting: Sequence[str], mapped: Collection[str]) -> str:
    """The format of a row that fits several: the mapped one, or a list of turns, or not empty."""
    most = max(len(FORMAT_KEYS[name] & set(mapped)) for name in fitting)
    names = [name for name in fitting if len(FORMAT_KEYS[name] & set(mapped)) == most]
    filled = [name for name in names if not any(is_blank(row[key]) for key in FORMAT_KEYS[name])]
    names = filled or names
    names = [name for name in names if name in LISTS] or names
    values = [[row[key] for key in sorted(FORMAT_KEYS[name])] for name in names]
    if filled and any(value != values[0] for value in values):
        fits = "; ".join(f"{name} ({', '.join(sorted(FORMAT_KEYS[name]))})" for name in names)
        raise RowError(f"the row fits several formats: {fits}; set the source's `format`")
    return names[0]


def _is_not_of_text(key: Any) -> bool:
    return key in _NOT_TEXT or meaning(str(key)) is not None


def _pair(row: Row, mapped: Collection[str]) -> tuple[str, str] | None:
    """The keys of a question and an answer, if there is exactly one of each."""
    questions = [key for key in row if key in QUESTION_KEYS]
    questions = [key for key in questions if key not in _WEAK_QUESTIONS] or questions
    answers = [key for key in row if key in ANSWER_KEYS]
    questions = [key for key in questions if key in mapped] or questions
    answers = [key for key in answers if key in mapped] or answers
    return (questions[0], answers[0]) if len(questions) == len(answers) == 1 else None


def _renames_to(format: str, row: Row) -> dict[str, str]:
    """The keys of a row for those of the format that its source sets, where they differ."""
    if format in PAIRS:
        pair = _pair(row, PAIRS[format])
        renames = zip(PAIRS[format], pair, strict=True) if pair else ()
        return {key: column for key, column in renames if key != column}
    if format == "text":
        return {"text": "content"} if "content" in row else {}
    lists = [key for key in (*LISTS.values(), *LIST_KEYS) if key in row]
    return {LISTS[format]: lists[0]} if len(lists) == 1 and LISTS[format] not in row else {}


@functools.lru_cache(4096)
def _aliases(keys: tuple[str, ...], format: str) -> tuple[tuple[str, str], ...]:
    """Pairs (key, alias) of the optional keys that a row has under another name."""
    return tuple(
        (key, alias)
        for key, names in _ALIASES.items()
        if key in READ_KEYS[format]
        for alias in names
        if alias in keys
    )


def _moved(row: Row, key: str, alias: str) -> Row:
    """The row with the value of an alias under the key itself."""
    value, own = row[alias], row.get(key)
    if is_blank(value):
        return row
    if not is_blank(own) and own != value:
        raise RowError(f"{key} and {alias} differ: only one of them can be used")
    return {name: item for name, item in row.items() if name != alias} | {key: value}
