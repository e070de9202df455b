"""Spans of a rendered conversation: text from messages, and text that the model learns to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Span = tuple[int, int]

# How an answer stands to the generation prompt that serving sends in its place, if the text does
# not begin with that prompt. A number of 0 or more is the length of what stands between the two.
NO_PROMPT = -1  # the template writes no prompt there, as no message precedes the answer
OTHER_PROMPT = -2  # the prompt is another text
NO_THOUGHT = -3  # the prompt leaves room for a thought, and the answer has none
LEFT_OUT = -4  # the prompt is another text, and a later answer is trained instead; it has no span


class AnswerSpan(NamedTuple):
    """An assistant turn of a rendered text, in characters.

    `start:end` is what the model learns to write: everything from the end of the generation prompt
    to the end of the token that ends the turn. `gap` is the length of an empty thought that the
    template writes between prompt and `start`, mostly 0, or one of the negative numbers above.
    """

    turn: int
    start: int
    end: int
    gap: int


@dataclass(frozen=True)
class RenderedSpans:
    """A rendered text and its spans, in characters.

    `answers` has every assistant turn, and is empty for a prompt. `contents`: the messages' texts
    by message index, without those that the template cuts, rebuilds or hides; `hidden` are their
    indices. `context` are the spans in `contents` of system, user and tool turns. The template
    wrote all but the last `num_added` characters.
    """

    text: str
    answers: tuple[AnswerSpan, ...]
    contents: Mapping[int, Span]
    context: tuple[Span, ...]
    hidden: tuple[int, ...] = ()
    num_added: int = 0

    @property
    def written(self) -> str:
        """The text as the template wrote it."""
        return self.text[: len(self.text) - self.num_added]


def shared_length(text: str, other: str) -> int:
    """The number of characters with which both texts begin."""
    same, size = 0, min(len(text), len(other))
    while size > same:
        middle = (same + size + 1) // 2
        if text.startswith(other[same:middle], same):
            same = middle
        else:
            size = middle - 1
    return same


class PlainSpans(NamedTuple):
    """Spans of a text in which the encoder makes no special token, and spans without markers."""

    special: tuple[Span, ...]
    markers: tuple[Span, ...]


class ByteSpans(NamedTuple):
    """The spans of one text in bytes, as flat lists, so that no object is made for each span.

    `label_spans` holds start, end, loss weight and gap (see AnswerSpan) of each answer with a loss;
    `context_spans` start and end of each text from a system, user or tool turn, where the template
    shows it; `masked_spans` start and end of the parts of answers that are kept out of the loss.
    `num_left_out` answers are not trained because their prompt is another text; of `num_thoughts`
    thoughts the template leaves out `num_dropped_thoughts`.
    """

    label_spans: Sequence[float]
    context_spans: Sequence[int]
    masked_spans: Sequence[int] = ()
    num_left_out: int = 0
    num_thoughts: int = 0
    num_dropped_thoughts: int = 0
