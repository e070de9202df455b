"""Conversations longer than a pack are split or truncated by complete exchanges."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.chat import ChatRenderer
from pipelines.core.conversation import Conversation, Turn
from pipelines.data.convert.truncation import shorten


@pytest.fixture(scope="module")
def renderer(pocket_base):
    return ChatRenderer.load(pocket_base)


def conversation_of(letters: str, long: str = "") -> Conversation:
    """A system turn and an exchange for each letter, in the loss if the letter is T.

    An exchange whose number is in `long` fills a pack.
    """
    turns = [Turn("system", "s")]
    for i, letter in enumerate(letters):
        words = "word " * (200 if str(i) in long else 1)
        turns += [
            Turn("user", f"question {i}"),
            Turn("assistant", f"answer {i} {words}", train=letter == "T"),
        ]
    return Conversation(tuple(turns))


def tokens(renderer: ChatRenderer, conversation: Conversation) -> int:
    return len(renderer.render(conversation).input_ids)


def pieces(
    renderer: ChatRenderer, conversation: Conversation, num_exchanges: int, policy: str = "split"
) -> list[str]:
    """The numbers of the exchanges in each piece, of packs that just hold so many."""
    row_tokens = tokens(renderer, conversation_of("T" * num_exchanges))
    conversations = shorten(conversation, renderer, row_tokens, policy)
    assert all(
        piece.turns[0].role == "system" and tokens(renderer, piece) <= row_tokens
        for piece in conversations
    )
    assert all(renderer.render(piece).num_loss_tokens for piece in conversations)
    return [
        "".join(t.content.split()[1] for t in piece.turns if t.role == "user")
        for piece in conversations
    ]


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("TTTTTTT", ["012", "345", "6"]),
        (
            "UTTTTTT",
            ["012", "345", "6"],
        ),  # exchanges without loss are context of the next with loss
        ("UUTTTTT", ["012", "345", "6"]),
        ("UUUUUTT", ["345", "6"]),  # the latest context that fits
        ("UUUUUUT", ["456"]),
        ("TUUTTTT", ["0", "123", "456"]),  # each context is used once
        ("TTUUUUU", ["01"]),
        ("UTUUUUT", ["01", "456"]),
    ],
)
def test_exchanges_without_loss_are_the_context_of_exchanges_with_loss(renderer, letters, expected):
    assert pieces(renderer, conversation_of(letters), 3) == expected


def test_an_exchange_that_fits_in_no_pack_is_left_out(renderer):
    assert pieces(renderer, conversation_of("TTTT", long="1"), 3) == ["0", "23"]
    assert pieces(renderer, conversation_of("UUTT", long="1"), 3) == ["23"]
    assert pieces(renderer, conversation_of("UTUU", long="1"), 3) == []


def test_the_latest_exchanges_stay_if_one_of_them_has_a_loss(renderer):
    assert pieces(renderer, conversation_of("TTTTT"), 3, "truncate") == ["234"]
    assert pieces(renderer, conversation_of("UUUTU"), 3, "truncate") == ["234"]
    assert pieces(renderer, conversation_of("TTUUU"), 3, "truncate") == []


def test_an_empty_or_weightless_answer_has_no_loss(renderer):
    conversation = conversation_of("TTTTT")
    turns = [
        replace(t, weight=0.0) if t.content.startswith("answer 4") else t
        for t in conversation.turns
    ]
    assert pieces(renderer, replace(conversation, turns=tuple(turns)), 2) == ["01", "23"]
