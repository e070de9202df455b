"""Loss weights of tokens from the places of the answers, and what is counted about them on the tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.chat.encoder import Encoded

# L: texts, T: tokens of all of them


class Places(NamedTuple):
    """Of one text, in bytes: the trained answers with their weights, and what other turns said (where that shows)."""

    trained: Sequence[tuple[int, int, float]]
    others: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Masks:
    """`weights` float32 [T]. Of each text, int64 [L]: `turns` that are trained, those among them whose last trained
    token is `without_stop`, texts of `others` (system, user, tool turns), and tokens of these that are `wrongly` trained.
    """

    weights: np.ndarray
    turns: np.ndarray
    without_stop: np.ndarray
    others: np.ndarray
    wrongly: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Masks]) -> Masks:
        names = ("weights", "turns", "without_stop", "others", "wrongly")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def none(cls, count: int) -> Masks:
        """The masks of `count` texts without tokens."""
        zeros = np.zeros(count, np.int64)
        return cls(np.empty(0, np.float32), zeros, zeros, zeros, zeros)


def masks_of(encoded: Encoded, places: Sequence[Places], stop_ids: np.ndarray) -> Masks:
    """A token belongs to an answer that holds it whole. One that lies partly in another turn's text counts as its."""
    count = len(places)
    bases = encoded.bases.tolist()
    spans = [(base + a, base + b, w) for base, one in zip(bases, places, strict=False) for a, b, w in one.trained]
    weights = np.zeros(len(encoded.ids), np.float32)
    table = np.array(spans, np.float64).reshape(-1, 3)
    first = np.searchsorted(encoded.starts, table[:, 0].astype(np.int64))
    last = np.searchsorted(encoded.ends, table[:, 1].astype(np.int64), side="right")
    sizes = np.maximum(last - first, 0)
    at = np.repeat(first - np.concatenate(([0], np.cumsum(sizes)[:-1])), sizes) + np.arange(sizes.sum())
    weights[at] = np.repeat(table[:, 2].astype(np.float32), sizes)
    ends_well = np.zeros(len(spans), bool)
    some = sizes > 0
    ends_well[some] = np.isin(encoded.ids[last[some] - 1], stop_ids)
    turns, without_stop = _per_text([len(one.trained) for one in places], ~ends_well)
    others, wrongly = _per_text([len(one.others) for one in places], _trained_in_others(encoded, places, weights))
    assert len(turns) == count
    return Masks(weights, turns, without_stop, others, wrongly)


def _trained_in_others(encoded: Encoded, places: Sequence[Places], weights: np.ndarray) -> np.ndarray:
    """Of each text of another turn the number of trained tokens that touch it."""
    bases = encoded.bases.tolist()
    spans = [(base + a, base + b) for base, one in zip(bases, places, strict=False) for a, b in one.others]
    table = np.array(spans, np.int64).reshape(-1, 2)
    trained = np.flatnonzero(weights)
    first = np.searchsorted(encoded.ends, table[:, 0], side="right")
    last = np.searchsorted(encoded.starts, table[:, 1])
    return np.maximum(np.searchsorted(trained, last) - np.searchsorted(trained, first), 0)


def _per_text(counts: Sequence[int], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The counts, and the sum of each text's `counts[i]` values."""
    sizes = np.array(counts, np.int64)
    sums = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    ends = np.cumsum(sizes)
    return sizes, sums[ends] - sums[ends - sizes]
