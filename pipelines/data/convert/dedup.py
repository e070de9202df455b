"""Detection of samples that repeat an earlier sample, exactly or nearly.

N: samples in the order of their sources
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SHINGLE_CHARS = 5
NUM_PERMUTATIONS = 64
_BAND_ROWS = 4
_GROUP_HEADS, _BLOCK_PAIRS = 8, 1 << 16
_MIXERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64
)


def signature(text: str) -> bytes:
    """MinHash of a text's character shingles as the bytes of uint32 [NUM_PERMUTATIONS].

    Independent of case and white space.
    """
    # The package is compiled and has no type stubs.
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    plain = " ".join(text.casefold().split())
    shingles = {plain[i : i + SHINGLE_CHARS] for i in range(max(1, len(plain) - SHINGLE_CHARS + 1))}
    minhash = RMinHash(num_perm=NUM_PERMUTATIONS, seed=1)
    minhash.update(list(shingles))
    return np.asarray(minhash.digest(), np.uint32).tobytes()


def repeated(ids: np.ndarray) -> np.ndarray:
    """Mask of the samples that have the id of an earlier sample, bool [N]; `ids` is S16 [N]."""
    _, first = np.unique(ids, return_index=True)
    mask = np.ones(len(ids), bool)
    mask[first] = False
    return mask


def nearly_repeated(
    signatures: np.ndarray, threshold: float, among: np.ndarray | None = None
) -> np.ndarray:
    """Mask of the samples that are at least `threshold` similar to an earlier one that stays, [N].

    `signatures` is uint32 [N, NUM_PERMUTATIONS], in memory or mapped. Only the samples numbered in
    `among` are compared. Pairs are candidates if they agree in a band of 4 permutations: a pair of
    similarity s is a candidate with probability 1 - (1 - s^4)^16, 0.999 at 0.8. The share of equal
    permutations estimates the Jaccard similarity (Broder 1997).
    """
    mask = np.zeros(len(signatures), bool)
    rows = np.arange(len(signatures)) if among is None else among
    # A pair is later << 32 | earlier: sorted, pairs come in the order in which they are decided.
    similar = np.empty(0, np.int64)
    for band in range(0, NUM_PERMUTATIONS, _BAND_ROWS):
        parts = [similar]
        for later, earlier in _candidates(
            np.ascontiguousarray(signatures[rows, band : band + _BAND_ROWS])
        ):
            for first in range(0, len(later), _BLOCK_PAIRS):
                pair = (rows[later[first : first + _BLOCK_PAIRS]] << 32) | rows[
                    earlier[first : first + _BLOCK_PAIRS]
                ]
                pair = pair[~_is_among(pair, similar)]  # most bands give the same pairs
                equal = np.count_nonzero(
                    signatures[pair >> 32] == signatures[pair & 0xFFFFFFFF], axis=1
                )
                parts.append(pair[equal >= threshold * NUM_PERMUTATIONS])
        similar = np.unique(np.concatenate(parts))
    for first in range(0, len(similar), _BLOCK_PAIRS):
        for pair in similar[first : first + _BLOCK_PAIRS].tolist():
            mask[pair >> 32] |= not mask[pair & 0xFFFFFFFF]
    return mask


def _is_among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Mask of the values that are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def _candidates(band: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (later, earlier) of samples that agree in a band, as arrays of row numbers of `band`.

    Members of a group are compared with its first 8 members only: comparing all pairs would be
    quadratic in the size of a large group.
    """
    if not len(band):
        return
    mixed = (band.astype(np.uint64) * _MIXERS).sum(axis=1, dtype=np.uint64)
    order = np.argsort(mixed, kind="stable")
    starts_group = np.diff(mixed[order], prepend=mixed[order[:1]] + np.uint64(1)) != 0
    first = np.maximum.accumulate(np.where(starts_group, np.arange(len(order)), 0))
    within = np.arange(len(order)) - first
    for member in range(min(_GROUP_HEADS, int(within.max(initial=0)))):
        later = np.flatnonzero(within > member)
        yield order[later], order[first[later] + member]
