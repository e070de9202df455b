"""A row as it was read, and the limits of what is read as one row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_ROW_BYTES = 8 << 20
MAX_SHOWN_CHARS = 2000


class RawRow(NamedTuple):
    """A row with its number in the chunk, from 0: its line, or its index in files without lines.

    A row that cannot be read has the reason in `error`, and in `text` its first 2,000 characters.
    """

    number: int
    value: Any = None
    error: str | None = None
    text: str = ""


def broken(number: int, error: str, content: bytes | str) -> RawRow:
    """A row that cannot be read."""
    text = (
        content[: 4 * MAX_SHOWN_CHARS].decode(errors="backslashreplace")
        if isinstance(content, bytes)
        else content
    )
    return RawRow(number, error=error, text=printable(text[:MAX_SHOWN_CHARS]))


def printable(text: str) -> str:
    """The text with half surrogate pairs and stray bytes as escapes, so that it can be encoded."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def as_text(value: Any) -> str:
    """Any value as text for people, cut at 2,000 characters."""
    try:
        return json.dumps(value, default=str, skipkeys=True)[:MAX_SHOWN_CHARS]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return f"({type(value).__name__} that cannot be written as JSON)"


def reason_of(error: BaseException) -> str:
    """An exception as part of one line; of a JSON error only the message, without the position."""
    text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return text.splitlines()[0] if text else type(error).__name__


def repeated_key(pairs: Sequence[tuple[str, Any]]) -> str:
    """The fault of an object in which a key occurs more than once."""
    keys = [key for key, _ in pairs]
    return f"the key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice"


def strict_decoder() -> json.JSONDecoder:
    """A decoder that raises ValueError for keys that occur twice.

    NaN and Infinity, which Python writes, are numbers: a row is refused only where one is used.
    """
    return json.JSONDecoder(object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(repeated_key(pairs))
    return value
