"""A row as it was read, and the limits of what is read as one row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MAX_ROW_BYTES = 8 << 20
MAX_SHOWN_CHARS = 2000


@dataclass(frozen=True)
class RawRow:
    """A row with its number: the line in the chunk, or the row where there are no lines, from 0. `error` says why it
    cannot be read; `text` is then what was found there, cut at 2,000 characters.
    """

    number: int
    value: Any = None
    error: str | None = None
    text: str = ""


def broken(number: int, error: str, found: bytes | str) -> RawRow:
    """A row that cannot be read."""
    text = (
        found[: 4 * MAX_SHOWN_CHARS].decode(errors="backslashreplace")
        if isinstance(found, bytes)
        else found
    )
    return RawRow(number, error=error, text=printable(text[:MAX_SHOWN_CHARS]))


def printable(text: str) -> str:
    """The text with what is no Unicode character (half surrogate pairs, stray bytes) spelled as an escape."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def as_text(value: Any) -> str:
    """A value for people, whatever it holds, cut at 2,000 characters."""
    try:
        return json.dumps(value, default=str, skipkeys=True)[:MAX_SHOWN_CHARS]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return f"({type(value).__name__} that cannot be written as JSON)"


def why(error: BaseException) -> str:
    """An exception as part of a line; of JSON's errors the message without its place."""
    text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return text.splitlines()[0] if text else type(error).__name__


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return value


def strict_decoder() -> json.JSONDecoder:
    """JSON without the constants that Python adds and without keys that are there twice."""
    return json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
