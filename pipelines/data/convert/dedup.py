"""Which samples are the same, nearly the same, or known from the held-out side: keys made by tasks, judged together.

N: samples in the order of their sources
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipelines.core.conversation import Conversation, Turn

SHINGLE_CHARS = 5
NUM_PERMUTATIONS = 64
GRAM_WORDS = 13
_BAND_ROWS = 4
_GROUP_HEADS, _BLOCK_PAIRS = 8, 1 << 16
_MIXERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64
)


def content_id(conversation: Conversation) -> bytes:
    """16 bytes of a conversation's content, whatever file and place it came from."""
    parts: list[str] = []
    for turn in conversation.turns:
        parts += (turn.role, turn.content)
        if turn.tool_calls or not turn.train or turn.weight != 1.0:
            parts.append(repr((turn.tool_calls, turn.train, turn.weight)))
        if turn.name:
            parts.append(f"name {turn.name}")
    return _hash([*parts, *map(repr, conversation.tools)])


def prompt_keys(conversation: Conversation) -> list[int]:
    """64 bits of what precedes each answer, oldest first, letter case and white space aside: the same question, the same
    key, however it is trained on. Never empty.
    """
    turns = conversation.turns
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"] or [0]
    return [_key(_asked(turns[:i])) for i in answers]


def question_keys(conversation: Conversation, first_only: bool = False) -> set[int]:
    """Keys of all that precedes each answer, and of each user turn alone (or the first only), system turns aside."""
    turns = [turn for turn in conversation.turns if turn.role != "system"]
    users = [turn for turn in turns if turn.role == "user"]
    alone = {_key(_asked([turn])) for turn in (users[:1] if first_only else users)}
    return alone | {
        _key(_asked(turns[:i])) for i, turn in enumerate(turns) if i and turn.role == "assistant"
    }


def _asked(turns: Sequence[Turn]) -> list[str]:
    parts: list[str] = []
    for turn in turns:
        parts += (turn.role, turn.content)
        if turn.tool_calls:
            parts.append(repr(turn.tool_calls))
    return parts


def _key(parts: Iterable[str]) -> int:
    plain = " ".join("\0".join(parts).casefold().split())
    return struct.unpack("<q", hashlib.blake2b(plain.encode(), digest_size=8).digest())[0]


def share_of(key: int, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on the key, the seed and the purpose alone."""
    digest = hashlib.blake2b(b"%s:%d:%d" % (purpose.encode(), seed, key), digest_size=8).digest()
    return int.from_bytes(digest, "little") / (1 << 64)


def _hash(parts: list[str]) -> bytes:
    # The lengths keep ("ab", "c") and ("a", "bc") apart.
    head = ",".join([str(len(part)) for part in parts])
    return hashlib.blake2b("\0".join([head, *parts]).encode(), digest_size=16).digest()


def text_of(conversation: Conversation) -> str:
    """All turns' texts, one after another."""
    return "\n".join(turn.content for turn in conversation.turns)


def signature(text: str) -> bytes:
    """MinHash of a text's character shingles, letter case and white space aside: uint32 [NUM_PERMUTATIONS]."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

    plain = " ".join(text.casefold().split())
    shingles = {plain[i : i + SHINGLE_CHARS] for i in range(max(1, len(plain) - SHINGLE_CHARS + 1))}
    hashed = RMinHash(num_perm=NUM_PERMUTATIONS, seed=1)
    hashed.update(list(shingles))
    return np.asarray(hashed.digest(), np.uint32).tobytes()


def grams(text: str) -> set[int]:
    """Hashes of all runs of 13 words, the usual unit for finding benchmark text in training text."""
    words = text.casefold().split()
    return {_key([" ".join(words[i : i + GRAM_WORDS])]) for i in range(len(words) - GRAM_WORDS + 1)}


def repeated(ids: np.ndarray) -> np.ndarray:
    """Which samples have the id of an earlier one, bool [N]; `ids` is S16 [N]."""
    _, first = np.unique(ids, return_index=True)
    mask = np.ones(len(ids), bool)
    mask[first] = False
    return mask


def nearly_repeated(
    signatures: np.ndarray, threshold: float, among: np.ndarray | None = None
) -> np.ndarray:
    """Which samples are at least `threshold` similar to an earlier one that is kept, bool [N].

    `signatures` is uint32 [N, NUM_PERMUTATIONS], in memory or mapped; only the samples numbered in `among` are looked at.
    Candidates agree in a band of 4 permutations (a pair of similarity s is found with probability 1 - (1 - s^4)^16: 0.999
    at 0.8); the share of equal permutations estimates the Jaccard similarity (Broder 1997).
    """
    mask = np.zeros(len(signatures), bool)
    rows = np.arange(len(signatures)) if among is None else among
    found = np.empty(0, np.int64)  # later << 32 | earlier, so that their order is that of judging
    for band in range(0, NUM_PERMUTATIONS, _BAND_ROWS):
        parts = [found]
        for later, earlier in _candidates(
            np.ascontiguousarray(signatures[rows, band : band + _BAND_ROWS])
        ):
            for first in range(0, len(later), _BLOCK_PAIRS):
                pair = (rows[later[first : first + _BLOCK_PAIRS]] << 32) | rows[
                    earlier[first : first + _BLOCK_PAIRS]
                ]
                pair = pair[~_among(pair, found)]  # the bands mostly find the same pairs
                equal = np.count_nonzero(
                    signatures[pair >> 32] == signatures[pair & 0xFFFFFFFF], axis=1
                )
                parts.append(pair[equal >= threshold * NUM_PERMUTATIONS])
        found = np.unique(np.concatenate(parts))
    for first in range(0, len(found), _BLOCK_PAIRS):
        for pair in found[first : first + _BLOCK_PAIRS].tolist():
            mask[pair >> 32] |= not mask[pair & 0xFFFFFFFF]
    return mask


def _among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which values are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def _candidates(band: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (later, earlier) of samples whose permutations in a band agree, as arrays of their places in it.

    The first 8 members stand for their group: comparing all pairs would be quadratic in a large one.
    """
    if not len(band):
        return
    mixed = (band.astype(np.uint64) * _MIXERS).sum(axis=1, dtype=np.uint64)
    order = np.argsort(mixed, kind="stable")
    starts_group = np.diff(mixed[order], prepend=mixed[order[:1]] + np.uint64(1)) != 0
    first = np.maximum.accumulate(np.where(starts_group, np.arange(len(order)), 0))
    within = np.arange(len(order)) - first
    for member in range(min(_GROUP_HEADS, int(within.max(initial=0)))):
        behind = np.flatnonzero(within > member)
        yield order[behind], order[first[behind] + member]


def known(keys: np.ndarray, held: Sequence[int] | np.ndarray) -> np.ndarray:
    """Which keys are among `held`, bool [N]."""
    return np.isin(keys, np.asarray(held, np.int64))
