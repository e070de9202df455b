"""A template compiled for one shape of conversation: fixed segments with slots for the contents."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.chat.compiled.symbolic_text import AS_IS, LSTRIP, RSTRIP, STRIP, ContentCondition
from pipelines.chat.spans import RenderedSpans

_TRIM = {STRIP: str.strip, LSTRIP: str.lstrip, RSTRIP: str.rstrip}


@dataclass(frozen=True)
class AnswerSegments:
    """The segments `first:last` of the answer of message `turn`.

    It also includes the last `lead` characters of the segment before, which are ASCII, and the
    first `tail` characters (`tail_bytes` bytes) of the segment after.
    """

    turn: int
    first: int
    last: int
    lead: int = 0
    tail: int = 0
    tail_bytes: int = 0


@dataclass(frozen=True)
class PromptSegments:
    """The last answer's generation prompt: the first `count` segments, then the fixed text `tail`
    of `num_bytes` bytes.
    """

    count: int
    tail: str
    num_bytes: int


@dataclass(frozen=True)
class CompiledTemplate:
    """Fixed segments and slots (message index, trim mode), and which of them are answers.

    Valid for contents that meet the conditions. `prompt` is None where the template's generation
    prompt depends on the contents, or the conversation's render does not begin with it.
    """

    segments: tuple[str | tuple[int, str], ...]
    answers: tuple[AnswerSegments, ...]
    conditions: tuple[ContentCondition, ...]
    prompt: PromptSegments | None = None

    def accepts(self, contents: Sequence[str]) -> bool:
        return all(condition.holds(contents[condition.turn]) for condition in self.conditions)

    @functools.cached_property
    def _slots(self) -> list[tuple[int, int, str]]:
        return [(i, *slot) for i, slot in enumerate(self.segments) if not isinstance(slot, str)]

    @functools.cached_property
    def context_segments(self) -> list[int]:
        """The segments with the contents of system, user and tool turns."""
        assistant_turns = {answer.turn for answer in self.answers}
        return [i for i, turn, _ in self._slots if turn not in assistant_turns]

    def fill(self, contents: Sequence[str]) -> list[str]:
        """The segments with the contents filled in; joined, they are the render."""
        texts: list[Any] = [*self.segments]
        for i, turn, mode in self._slots:
            texts[i] = contents[turn] if mode == AS_IS else _TRIM[mode](contents[turn])
        return texts

    def locate(self, contents: Sequence[str]) -> RenderedSpans:
        """The spans of a conversation with these contents."""
        texts = self.fill(contents)
        at = [0, *itertools.accumulate(map(len, texts))]
        return RenderedSpans(
            "".join(texts),
            tuple((a.turn, at[a.first] - a.lead, at[a.last] + a.tail) for a in self.answers),
            tuple((at[i], at[i + 1]) for i, _, _ in self._slots),
            tuple((at[i], at[i + 1]) for i in self.context_segments),
        )
