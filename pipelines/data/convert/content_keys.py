"""Digests of a conversation's content, by which rows are compared without keeping their texts."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

from pipelines.core.conversation import Conversation, Turn

GRAM_WORDS = 13


def content_id(conversation: Conversation) -> bytes:
    """16 bytes of a conversation's content, independent of its file and line."""
    parts: list[str] = []
    for turn in conversation.turns:
        parts += (turn.role, turn.content)
        if turn.tool_calls or not turn.train or turn.weight != 1.0:
            parts.append(repr((turn.tool_calls, turn.train, turn.weight)))
        if turn.name:
            parts.append(f"name {turn.name}")
        if turn.reasoning or turn.masked:
            parts.append(f"reasoning {turn.reasoning!r} masked {turn.masked}")
    return _digest([*parts, *map(repr, conversation.tools)])


def cluster_id(conversation: Conversation) -> bytes:
    """16 bytes of a conversation's opening: equal for variants and continuations of a conversation.

    The opening is the first user turn without regard to case and white space, or the complete
    content of a conversation without a user turn.
    """
    opening = next((turn.content for turn in conversation.turns if turn.role == "user"), None)
    if opening is None:
        return content_id(conversation)
    return _digest(["opening", _normalized(opening)])


def prompt_keys(conversation: Conversation) -> list[int]:
    """64 bits of the turns before each answer, oldest first; never empty.

    Independent of case, white space and of what enters the loss: one question has one key. Plain
    text has no question, so its key is of the text.
    """
    turns = conversation.turns
    if conversation.is_text:
        return [_key(_spelled(turns))]
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"] or [0]
    return [_key(_spelled(turns[:i])) for i in answers]


def question_keys(conversation: Conversation, first_only: bool = False) -> set[int]:
    """Keys of the turns before each answer and of each user turn alone, without system turns.

    With `first_only`, only the first user turn has a key of its own. Plain text counts as a user
    turn.
    """
    if conversation.is_text:
        return {_key(["user", conversation.turns[0].content])}
    turns = [turn for turn in conversation.turns if turn.role != "system"]
    users = [turn for turn in turns if turn.role == "user"]
    keys = {_key(_spelled([turn])) for turn in (users[:1] if first_only else users)}
    return keys | {
        _key(_spelled(turns[:i])) for i, turn in enumerate(turns) if i and turn.role == "assistant"
    }


def grams(text: str) -> set[int]:
    """Hashes of all runs of 13 words, the usual unit to find benchmark text in training text."""
    words = text.casefold().split()
    return {_key([" ".join(words[i : i + GRAM_WORDS])]) for i in range(len(words) - GRAM_WORDS + 1)}


def text_of(conversation: Conversation) -> str:
    """The texts of all turns, thoughts included, one after another."""
    texts = []
    for turn in conversation.turns:
        texts += [turn.reasoning, turn.content] if turn.reasoning else [turn.content]
    return "\n".join(texts)


def share_of(key: int, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends only on the key, the seed and the purpose."""
    digest = hashlib.blake2b(b"%s:%d:%d" % (purpose.encode(), seed, key), digest_size=8).digest()
    return int.from_bytes(digest, "little") / (1 << 64)


def _spelled(turns: Sequence[Turn]) -> list[str]:
    parts: list[str] = []
    for turn in turns:
        parts += (turn.role, turn.content)
        if turn.tool_calls:
            parts.append(repr(turn.tool_calls))
    return parts


def _key(parts: Iterable[str]) -> int:
    plain = _normalized("\0".join(parts))
    return struct.unpack("<q", hashlib.blake2b(plain.encode(), digest_size=8).digest())[0]


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(parts: list[str]) -> bytes:
    # The lengths distinguish ("ab", "c") from ("a", "bc").
    head = ",".join([str(len(part)) for part in parts])
    return hashlib.blake2b("\0".join([head, *parts]).encode(), digest_size=16).digest()
