"""Spans of a rendered conversation: text from messages, and text that the model learns to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Span = tuple[int, int]


@dataclass(frozen=True)
class RenderedSpans:
    """A rendered text and its spans, in characters.

    `assistant_spans` holds (message index, start, end) of each assistant turn: its answer and the
    text that ends the turn. `content_spans` is the text that came from messages, None where the
    template hides it. `context_spans` is the part of it from system, user and tool turns.
    """

    text: str
    assistant_spans: tuple[tuple[int, int, int], ...]
    content_spans: tuple[Span, ...] | None
    context_spans: tuple[Span, ...]


class ByteSpans(NamedTuple):
    """The spans of one text in bytes, as flat lists, so that no object is made for each span.

    `label_spans` holds start, end and loss weight of each answer with a loss; `context_spans` start
    and end of each text from a system, user or tool turn, where the template shows it.
    `prompt_end` is the end of the last answer's generation prompt, -1 where it is unknown.
    """

    label_spans: Sequence[float]
    context_spans: Sequence[int]
    prompt_end: int = -1
