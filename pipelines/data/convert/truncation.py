"""Shorten conversations longer than a packed row by leaving out complete exchanges."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from pipelines.chat import ChatRenderer, TemplateError
from pipelines.core.conversation import Conversation, Turn
from pipelines.data.convert.row_checks import enters_loss

Exchange = tuple[Turn, ...]


def shorten(
    conversation: Conversation, renderer: ChatRenderer, row_tokens: int, policy: str
) -> list[Conversation]:
    """The conversations that replace one longer than a packed row; none when nothing fits.

    `policy` truncate: the system turn with as many of the latest exchanges as fit. split: several
    conversations that together have every exchange with loss, each with the system turn; exchanges
    without loss precede the next exchange with loss, as many of the latest as fit. drop: none. An
    exchange that does not fit alone is left out. Each conversation has at least one answer in the
    loss.
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
        return len(rendered.input_ids) <= row_tokens

    has_loss = [any(map(enters_loss, exchange)) for exchange in exchanges]
    count = len(exchanges)
    if policy == "truncate":
        first = next((i for i in range(1, count) if fits(i, count)), count)
        return [joined(first, count)] if any(has_loss[first:]) else []
    pieces, first, last = [], 0, 0
    while any(has_loss[first:]):
        while last < count and fits(first, last + 1):
            last += 1
        end = max((i + 1 for i in range(first, last) if has_loss[i]), default=None)
        if end is None:  # only context fits: drop the earliest exchange so that an answer may fit
            first += 1
            last = max(last, first)
        else:
            pieces.append(joined(first, end))
            first = last = end
    return pieces


def _exchanges(turns: Sequence[Turn]) -> tuple[Exchange, list[Exchange]]:
    """The leading system turns, and the other turns in groups that each begin with a user turn."""
    start = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    cuts = [i for i, turn in enumerate(turns) if i > start and turn.role == "user"]
    bounds = [start, *cuts, len(turns)]
    return tuple(turns[:start]), [tuple(turns[a:b]) for a, b in itertools.pairwise(bounds) if b > a]
