"""Control tokens' text that was typed in names, tool lists and tool calls, and where a template writes it.

A second render with other characters in place of that text shows its places, whatever the template does with the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from pipelines.chat.compiled.segments import RenderedSpans
from pipelines.chat.special_tokens import SpecialTokens
from pipelines.chat.template import ChatTemplate, Messages, Span, TemplateError

_STAND_IN = "\ufdd4"  # a noncharacter: no template writes it and JSON does not escape it
_NOT_TYPED = ("role", "content")  # contents have marks of their own, see layout


class TypedText:
    """Finds what nobody may turn into a token (see `SpecialTokens`) in conversations for one template."""

    def __init__(self, template: ChatTemplate, controls: SpecialTokens) -> None:
        self._template = template
        self._controls = controls

    def held_in(self, messages: Messages, tools: Sequence[Any]) -> bool:
        """Whether it is in any text of the messages and tools."""
        return self._held(self._controls.typed_in, messages, tools)

    def cut(
        self, layout: RenderedSpans, messages: Messages, tools: Sequence[Any], prompt: bool = False
    ) -> RenderedSpans:
        """The layout with what names, tools and calls hold of control tokens' text among its `contents`, and of markers'
        text, calls aside, among its `others`. Raises TemplateError when control tokens' text was typed where the template
        hides it.
        """
        if layout.contents is not None:
            if not self._held_aside(messages, tools):
                return layout
            controls, markers = (
                typed_spans(
                    layout.text,
                    self._template.render(*disguised(messages, tools, *what), prompt).text,
                )
                for what in ((self._controls.pattern, True), (self._controls.marker_pattern, False))
            )
            if controls is not None and markers is not None:
                contents = tuple(sorted([*layout.contents, *controls]))
                return replace(layout, contents=contents, others=(*layout.others, *markers))
        if self._held(
            lambda text, _: self._controls.pattern.search(text) is not None, messages, tools
        ):
            raise TemplateError(
                "a message holds a control token's text, and the chat template hides where that came to lie"
            )
        return replace(
            layout, contents=(), others=(*layout.others, *_found_once(layout.text, messages))
        )

    def _held(
        self, typed: Callable[[str, bool], bool], messages: Messages, tools: Sequence[Any]
    ) -> bool:
        if any(typed(m["content"], m["role"] == "assistant") for m in messages):
            return True
        return any(typed(*text) for text in typed_texts(messages, tools))

    def _held_aside(self, messages: Messages, tools: Sequence[Any]) -> bool:
        return any(self._controls.typed_in(*text) for text in typed_texts(messages, tools))


def _found_once(text: str, messages: Messages) -> list[Span]:
    """Places of contents by the text itself: a template may look for markers in what a marked content does not show."""
    said = [m["content"].strip() for m in messages if m["role"] != "assistant"]
    return [
        (text.find(content), text.find(content) + len(content))
        for content in said
        if text.count(content) == 1
    ]


def typed_texts(messages: Messages, tools: Sequence[Any]) -> Iterator[tuple[str, bool]]:
    """Every text in the messages and tools that is neither a role nor a content, keys too, and whether an assistant's."""
    for message in messages:
        by_assistant = message["role"] == "assistant"
        yield from ((text, by_assistant) for text in _texts(_without_contents(message)))
    yield from ((text, False) for text in _texts(tools))


def disguised(
    messages: Messages, tools: Sequence[Any], pattern: re.Pattern[str], assistant: bool
) -> tuple[list[Mapping[str, Any]], list[Any]]:
    """The messages and tools with stand-ins of the same length for what `pattern` finds in their `typed_texts`, in those
    of an assistant only if `assistant`.
    """
    hidden = [
        {**_kept(message), **_disguised(_without_contents(message), pattern)}
        if assistant or message["role"] != "assistant"
        else message
        for message in messages
    ]
    return hidden, [_disguised(tool, pattern) for tool in tools]


def typed_spans(plain: str, other: str) -> list[Span] | None:
    """Where the render of the disguised messages has stand-ins that `plain` has not; None if the two differ elsewhere."""
    if len(plain) != len(other):
        return None
    places = [i for i, (a, b) in enumerate(zip(plain, other, strict=True)) if a != b]
    if any(other[i] != _STAND_IN for i in places):
        return None
    runs = [
        [place for _, place in run]
        for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0])
    ]
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
