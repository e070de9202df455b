"""The plan of a shape of conversation: fixed pieces with slots for the turns' texts, and where the answers lie among them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.chat.compiled.symbolic import AS_IS, LSTRIP, RSTRIP, STRIP, ContentCondition
from pipelines.chat.template import Span

_TRIM = {STRIP: str.strip, LSTRIP: str.lstrip, RSTRIP: str.rstrip}


@dataclass(frozen=True)
class RenderedSpans:
    """A rendered text; `trained` holds (turn, start, end), `contents` what came from messages, all in characters.

    `contents` is None where the template hides it. `others` is what of it other than assistant turns said.
    """

    text: str
    trained: tuple[tuple[int, int, int], ...]
    contents: tuple[Span, ...] | None
    others: tuple[Span, ...]


@dataclass(frozen=True)
class PlannedAnswer:
    """The pieces `first:last` of an answer, with `lead` characters of the piece before and `tail` of the next."""

    turn: int
    first: int
    last: int
    lead: int = 0
    tail: int = 0
    tail_bytes: int = 0


@dataclass(frozen=True)
class PlannedPrompt:
    """The last answer's generation prompt: the pieces before number `piece`, then the fixed `text`, of `num_bytes`."""

    piece: int
    text: str
    num_bytes: int


@dataclass(frozen=True)
class CompiledTemplate:
    """Fixed pieces and slots (turn, mode), and where the answers lie among them. `prompt` is None where the template does
    not tell the prompt of all such conversations alike, or does not begin the whole with it.
    """

    pieces: tuple[str | tuple[int, str], ...]
    answers: tuple[PlannedAnswer, ...]
    absent: tuple[ContentCondition, ...]
    prompt: PlannedPrompt | None = None

    def fits(self, contents: Sequence[str]) -> bool:
        return all(absence.holds(contents[absence.turn]) for absence in self.absent)

    @functools.cached_property
    def _slots(self) -> list[tuple[int, int, str]]:
        return [(i, *piece) for i, piece in enumerate(self.pieces) if not isinstance(piece, str)]

    @functools.cached_property
    def others(self) -> list[int]:
        """The pieces that hold what turns other than the assistant's said."""
        answering = {answer.turn for answer in self.answers}
        return [i for i, turn, _ in self._slots if turn not in answering]

    def texts(self, contents: Sequence[str]) -> list[str]:
        """The pieces with the contents in them; their concatenation is the render."""
        texts: list[Any] = [*self.pieces]
        for i, turn, mode in self._slots:
            texts[i] = contents[turn] if mode == AS_IS else _TRIM[mode](contents[turn])
        return texts

    def layout(self, contents: Sequence[str]) -> RenderedSpans:
        texts = self.texts(contents)
        at = [0, *itertools.accumulate(map(len, texts))]
        slots = tuple(
            (at[i], at[i + 1]) for i, piece in enumerate(self.pieces) if type(piece) is not str
        )
        trained = tuple((x.turn, at[x.first] - x.lead, at[x.last] + x.tail) for x in self.answers)
        return RenderedSpans(
            "".join(texts), trained, slots, tuple((at[i], at[i + 1]) for i in self.others)
        )
