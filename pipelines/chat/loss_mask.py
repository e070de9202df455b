"""Loss weights of tokens from the places of the answers, and what is counted about them on the tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from pipelines.chat.encoder import Encoded

# L: texts, T: tokens of all of them


class Places(NamedTuple):
    """Of one text, in bytes: `trained` holds start, end and weight of each trained answer, `others` start and end of what
    other turns said (where that shows), one behind another without a tuple for each. The last answer's generation prompt
    ends at `prompt`; -1 where that is not known.
    """

    trained: Sequence[float]
    others: Sequence[int]
    prompt: int = -1


@dataclass(frozen=True)
class LossMasks:
    """`weights` float32 [T]. Of each text, int64 [L]: `turns` that are trained, those among them whose last trained
    token is `without_stop`, texts of `others` (system, user, tool turns), and tokens of these that are `wrongly` trained;
    `prompts`: number of tokens before the end of the last answer's prompt, -1 where none begins just there.
    """

    weights: np.ndarray
    turns: np.ndarray
    without_stop: np.ndarray
    others: np.ndarray
    wrongly: np.ndarray
    prompts: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[LossMasks]) -> LossMasks:
        names = ("weights", "turns", "without_stop", "others", "wrongly", "prompts")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def none(cls, count: int) -> LossMasks:
        """The masks of `count` texts without tokens."""
        zeros = np.zeros(count, np.int64)
        return cls(np.empty(0, np.float32), zeros, zeros, zeros, zeros, zeros - 1)


def loss_masks(encoded: Encoded, places: Sequence[Places], stop_ids: np.ndarray) -> LossMasks:
    """A token belongs to an answer that holds it whole. One that lies partly in another turn's text counts as its."""
    turns = np.fromiter((len(one.trained) for one in places), np.int64, len(places)) // 3
    spans = np.fromiter(chain.from_iterable(one.trained for one in places), np.float64).reshape(
        -1, 3
    )
    bases = np.repeat(encoded.bases[:-1], turns)
    first = np.searchsorted(encoded.starts, bases + spans[:, 0].astype(np.int64))
    last = np.searchsorted(encoded.ends, bases + spans[:, 1].astype(np.int64), side="right")
    last = np.maximum(last, first)
    # Answers follow one another, so they cut the tokens into runs that are trained and not, by turns.
    bounds = np.maximum.accumulate(np.stack([first, last], axis=1).reshape(-1))
    values = np.stack(
        [np.zeros(len(spans), np.float32), spans[:, 2].astype(np.float32)], axis=1
    ).reshape(-1)
    sizes = np.diff(bounds, prepend=0, append=len(encoded.ids))
    weights = np.repeat(np.append(values, np.float32(0)), sizes)
    ends_well = np.zeros(len(spans), bool)
    some = last > first
    ends_well[some] = np.isin(encoded.ids[last[some] - 1], stop_ids)
    others = np.fromiter((len(one.others) for one in places), np.int64, len(places)) // 2
    touched = _trained_in_others(encoded, places, others, bounds)
    prompts = _prompt_tokens(
        encoded, np.fromiter((one.prompt for one in places), np.int64, len(places))
    )
    return LossMasks(
        weights, turns, _sums(turns, ~ends_well), others, _sums(others, touched), prompts
    )


def _prompt_tokens(encoded: Encoded, prompts: np.ndarray) -> np.ndarray:
    ends = encoded.bases[:-1] + prompts
    first = np.searchsorted(encoded.starts, ends)
    inside = (prompts >= 0) & (first < encoded.offsets[1:])
    begins = np.flatnonzero(inside)[encoded.starts[first[inside]] == ends[inside]]
    found = np.full(len(prompts), -1, np.int64)
    found[begins] = first[begins] - encoded.offsets[begins]
    return found


def _trained_in_others(
    encoded: Encoded, places: Sequence[Places], others: np.ndarray, bounds: np.ndarray
) -> np.ndarray:
    """Of each text of another turn the number of trained tokens that touch it. `bounds` are the answers' tokens."""
    spans = np.fromiter(chain.from_iterable(one.others for one in places), np.int64).reshape(-1, 2)
    spans = spans + np.repeat(encoded.bases[:-1], others)[:, None]
    if not len(bounds):
        return np.zeros(len(spans), np.int64)
    first = np.searchsorted(encoded.ends, spans[:, 0], side="right")
    last = np.searchsorted(encoded.starts, spans[:, 1])
    steps = np.diff(bounds, prepend=bounds[0])
    steps[::2] = 0
    before = np.cumsum(
        steps
    )  # trained tokens before each bound; between two of them the count grows by all or by none
    return np.maximum(
        np.rint(np.interp(last, bounds, before) - np.interp(first, bounds, before)).astype(
            np.int64
        ),
        0,
    )


def _sums(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum of each text's `counts[i]` values."""
    sums = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    ends = np.cumsum(counts)
    return sums[ends] - sums[ends - counts]
