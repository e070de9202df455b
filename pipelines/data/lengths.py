"""Conversations that are longer than a pack, made to fit by whole exchanges; nothing is cut inside a turn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from pipelines.chat import ChatRenderer, TemplateError
from pipelines.contracts import Conversation, Turn

Exchange = tuple[Turn, ...]


def shortened(conversation: Conversation, renderer: ChatRenderer, row_tokens: int, policy: str) -> list[Conversation]:
    """The conversations that take a long one's place: none when it cannot be mended.

    truncate: the system turn with as many of the latest exchanges as fit. split: all exchanges in conversations that
    fit, each with the system turn; an exchange that does not fit alone is left out.
    """
    system, exchanges = _exchanges(conversation.turns)
    if policy == "drop" or len(exchanges) < 2:
        return []

    def joined(first: int, last: int) -> Conversation:
        turns = (*system, *(turn for exchange in exchanges[first:last] for turn in exchange))
        return replace(conversation, turns=turns)

    def fits(first: int, last: int) -> bool:
        try:
            rendered = renderer.render(joined(first, last))
        except TemplateError:
            return False
        return len(rendered.input_ids) <= row_tokens and rendered.num_loss_tokens > 0

    count = len(exchanges)
    if policy == "truncate":
        return next(([joined(first, count)] for first in range(1, count) if fits(first, count)), [])
    pieces, first = [], 0
    while first < count:
        last = first
        while last < count and fits(first, last + 1):
            last += 1
        if last > first:
            pieces.append(joined(first, last))
        first = max(last, first + 1)
    return pieces


def _exchanges(turns: Sequence[Turn]) -> tuple[Exchange, list[Exchange]]:
    """The leading system turns, and the rest in groups that each begin with a user turn."""
    start = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    cuts = [i for i, turn in enumerate(turns) if i > start and turn.role == "user"]
    bounds = [start, *cuts, len(turns)]
    return tuple(turns[:start]), [tuple(turns[a:b]) for a, b in itertools.pairwise(bounds) if b > a]
