"""Shorten conversations longer than a packed row: by complete exchanges, plain text by words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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
    loss. Plain text is cut between lines or words: truncate takes the first piece, split all.
    """
    if conversation.is_text:
        pieces = _text_pieces(conversation, renderer, row_tokens)
        return list(itertools.islice(pieces, {"drop": 0, "truncate": 1}.get(policy)))
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


def _text_pieces(
    conversation: Conversation, renderer: ChatRenderer, row_tokens: int
) -> Iterator[Conversation]:
    """Pieces of a plain text that fit, which together are the text."""

    def piece_of(text: str) -> Conversation:
        return replace(conversation, turns=(replace(conversation.turns[0], content=text),))

    def num_tokens(piece: Conversation) -> int:
        return len(renderer.render(piece).input_ids)

    rest = conversation.turns[0].content
    chars = int(len(rest) * row_tokens / num_tokens(conversation))
    while rest.strip():
        # The estimate is of the complete text; a piece of denser text is shortened until it fits.
        size = max(1, chars)
        while num_tokens(piece := piece_of(rest[: _cut_before(rest, size)])) > row_tokens:
            if size == 1:
                return
            size = int(size * 0.9)
        if piece.turns[0].content.strip():
            yield piece
        rest = rest[len(piece.turns[0].content) :]


def _cut_before(text: str, size: int) -> int:
    """The end of the last line, or word, in the second half of the first `size` characters."""
    if size >= len(text):
        return len(text)
    for separator in ("\n", " "):
        end = text.rfind(separator, size // 2, size)
        if end >= 0:
            return end + 1
    return size


def _exchanges(turns: Sequence[Turn]) -> tuple[Exchange, list[Exchange]]:
    """The leading system turns, and the other turns in groups that each begin with a user turn."""
    start = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    cuts = [i for i, turn in enumerate(turns) if i > start and turn.role == "user"]
    bounds = [start, *cuts, len(turns)]
    return tuple(turns[:start]), [tuple(turns[a:b]) for a, b in itertools.pairwise(bounds) if b > a]
