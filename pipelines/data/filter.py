"""Which samples are the same, nearly the same, or known from the held-out side: keys made by tasks, judged together.

N: samples in the order of their sources
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

import numpy as np

from pipelines.contracts import Conversation

SHINGLE_CHARS = 5
NUM_PERMUTATIONS = 64
GRAM_WORDS = 13
_BAND_ROWS = 4


def content_id(conversation: Conversation) -> bytes:
    """16 bytes of a conversation's content, whatever file and place it came from."""
    return _hash([*_parts(conversation, len(conversation.turns)), *map(repr, conversation.tools)])


def prompt_key(conversation: Conversation) -> int:
    """64 bits of what precedes the last answer, letter case and white space aside: the same question, the same key."""
    last = max((i for i, turn in enumerate(conversation.turns) if turn.role == "assistant"), default=0)
    return _key(_parts(conversation, last))


def _key(parts: Iterable[str]) -> int:
    plain = " ".join("\0".join(parts).casefold().split())
    return struct.unpack("<q", hashlib.blake2b(plain.encode(), digest_size=8).digest())[0]


def share_of(key: int, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on the key, the seed and the purpose alone."""
    digest = hashlib.blake2b(b"%s:%d:%d" % (purpose.encode(), seed, key), digest_size=8).digest()
    return int.from_bytes(digest, "little") / (1 << 64)


def _parts(conversation: Conversation, count: int) -> list[str]:
    parts: list[str] = []
    for turn in conversation.turns[:count]:
        parts += (turn.role, turn.content)
        if turn.tool_calls or not turn.train or turn.weight != 1.0:
            parts.append(repr((turn.tool_calls, turn.train, turn.weight)))
    return parts


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


def nearly_repeated(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Which samples are at least `threshold` similar to an earlier one that is kept, bool [N].

    `signatures` is uint32 [N, NUM_PERMUTATIONS]. Candidates agree in a band of 4 permutations (a pair of similarity s
    is found with probability 1 - (1 - s^4)^16: 0.999 at 0.8); the share of equal permutations estimates the Jaccard
    similarity (Broder 1997).
    """
    mask = np.zeros(len(signatures), bool)
    candidates: dict[int, set[int]] = {}
    for band in range(0, NUM_PERMUTATIONS, _BAND_ROWS):
        part = np.ascontiguousarray(signatures[:, band : band + _BAND_ROWS]).view("S16").reshape(-1)
        _, group, counts = np.unique(part, return_inverse=True, return_counts=True)
        order = np.argsort(group, kind="stable")
        ends = np.cumsum(counts)
        for g in np.flatnonzero(counts > 1):
            members = order[ends[g] - counts[g] : ends[g]].tolist()
            for position, later in enumerate(members[1:], 1):
                # The first members stand for their group: comparing all pairs would be quadratic in a large one.
                candidates.setdefault(later, set()).update(members[: min(8, position)])
    for later in sorted(candidates):
        for earlier in sorted(candidates[later]):
            if not mask[earlier] and (signatures[later] == signatures[earlier]).mean() >= threshold:
                mask[later] = True
                break
    return mask


def known(keys: np.ndarray, held: Sequence[int] | np.ndarray) -> np.ndarray:
    """Which keys are among `held`, bool [N]."""
    return np.isin(keys, np.asarray(held, np.int64))
