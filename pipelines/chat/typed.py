"""Control tokens' text that was typed in names, tool lists and tool calls, and where a template writes it.

A second render with other characters in place of that text shows its places, whatever the template does with the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from pipelines.chat.template import Messages, Span

_STAND_IN = "\ufdd4"  # a noncharacter: no template writes it and JSON does not escape it
_NOT_TYPED = ("role", "content")  # contents have marks of their own, see layout


def typed_texts(messages: Messages, tools: Sequence[Any]) -> Iterator[str]:
    """Every text in the messages and tools that is neither a role nor a content, keys too."""
    yield from _texts([_without_contents(message) for message in messages])
    yield from _texts(tools)


def disguised(
    messages: Messages, tools: Sequence[Any], pattern: re.Pattern[str]
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The messages and tools with stand-ins of the same length for what `pattern` finds in their `typed_texts`."""
    hidden = [{**_kept(message), **_disguised(_without_contents(message), pattern)} for message in messages]
    return hidden, [_disguised(tool, pattern) for tool in tools]


def typed_spans(plain: str, other: str) -> list[Span] | None:
    """Where the render of the disguised messages has stand-ins that `plain` has not; None if the two differ elsewhere."""
    if len(plain) != len(other):
        return None
    places = [i for i, (a, b) in enumerate(zip(plain, other, strict=True)) if a != b]
    if any(other[i] != _STAND_IN for i in places):
        return None
    runs = [[place for _, place in run] for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0])]
    return [(run[0], run[-1] + 1) for run in runs]


def _without_contents(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in _NOT_TYPED}


def _kept(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key in _NOT_TYPED}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key)
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _disguised(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda match: _STAND_IN * len(match.group()), value)
    if isinstance(value, Mapping):
        return {_disguised(key, pattern): _disguised(each, pattern) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_disguised(each, pattern) for each in value]
    return value
