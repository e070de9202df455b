"""A template compiled for one shape of conversation: fixed segments with slots for the contents."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.chat.compiled.symbolic_text import AS_IS, LSTRIP, RSTRIP, STRIP, ContentCondition

_TRIM = {STRIP: str.strip, LSTRIP: str.lstrip, RSTRIP: str.rstrip}


class AnswerSegments(NamedTuple):
    """The answer of message `turn`: from `first_bytes` behind the start of segment `first` to
    `last_bytes` behind the start of segment `last`. `gap` is that of spans.AnswerSpan, in bytes.
    """

    turn: int
    first: int
    first_bytes: int
    last: int
    last_bytes: int
    gap: int


@dataclass(frozen=True)
class CompiledTemplate:
    """Fixed segments and slots (message index, trim mode), and which of them are answers.

    Valid for contents that meet the conditions.
    """

    segments: tuple[str | tuple[int, str], ...]
    answers: tuple[AnswerSegments, ...]
    conditions: tuple[ContentCondition, ...]

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

    def answer_bytes(self, contents: Sequence[str]) -> list[tuple[int, int, int, int]]:
        """Turn, start, end and gap in bytes of every answer in a render with these contents."""
        sizes = [len(text.encode()) for text in self.fill(contents)]
        at = [*itertools.accumulate(sizes, initial=0)]
        return [
            (a.turn, at[a.first] + a.first_bytes, at[a.last] + a.last_bytes, a.gap)
            for a in self.answers
        ]
