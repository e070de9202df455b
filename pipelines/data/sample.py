"""A converted row on its way into a split: its conversation, its keys, its copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.core.conversation import Conversation
from pipelines.data.convert.content_keys import content_id, share_of


@dataclass
class Sample:
    """A row, or with `piece` above 0 a piece of one that was too long.

    `row` is its number in its chunk; `fate` one of tokenized_table's; `facts` as in row_facts.
    """

    row: int
    conversation: Conversation
    fate: int
    prompt_keys: list[int]
    cluster_id: bytes
    copies: int
    facts: str | None
    piece: int = 0


def first_answer_to_user(conversation: Conversation) -> int:
    """The number of the first answer after a user turn, among the answers; -1 without one.

    The prompt of that answer chooses the split: conversations with the same opening are held out
    together, so that no training row continues a held-out one.
    """
    roles = [turn.role for turn in conversation.turns]
    if "user" not in roles[: last_answer(roles)]:
        return -1
    return roles[: roles.index("user")].count("assistant")


def last_answer(roles: Sequence[str]) -> int:
    """The index of the last assistant turn; 0 without one."""
    return max((i for i, role in enumerate(roles) if role == "assistant"), default=0)


def only_last_answer(conversation: Conversation) -> Conversation:
    """The conversation with only its last answer in the loss."""
    last = last_answer([turn.role for turn in conversation.turns])
    turns = tuple(
        replace(turn, train=False) if turn.role == "assistant" and i != last else turn
        for i, turn in enumerate(conversation.turns)
    )
    return replace(conversation, turns=turns)


def num_copies(conversation: Conversation, weight: float, seed: int) -> int:
    """The number of copies of a row to pack: a fraction of the weight keeps that share of rows.

    The choice depends on the complete content, so that of many answers to one question some stay.
    """
    copies, fraction = divmod(weight, 1)
    if fraction:
        key = int.from_bytes(content_id(conversation), "little")
        copies += share_of(key, seed, "weight") < fraction
    return int(copies)
