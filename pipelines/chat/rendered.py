"""Rendered conversations: their tokens and masks, one by one and as a batch, and the placed texts that they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.chat.compiled.segments import RenderedSpans
from pipelines.chat.loss_mask import LossMasks, Places

# L: conversations of a batch, T: their tokens


@dataclass(frozen=True)
class Rendered:
    """Token ids int32 [T] and loss weights float32 [T]; weight 0 masks a token."""

    input_ids: np.ndarray
    loss_weights: np.ndarray

    @property
    def num_loss_tokens(self) -> int:
        return int(np.count_nonzero(self.loss_weights))


class Placed(NamedTuple):
    """A text of `num_bytes` with its places; `layout` only when it must be cut around data. `prompt` is the fixed end of
    the last answer's generation prompt, where that is known.
    """

    text: str
    num_bytes: int
    places: Places
    layout: RenderedSpans | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class RenderedBatch:
    """`ids` int32 [T] and their masks; conversation i has `offsets[i]:offsets[i + 1]`, nothing if it has an error.
    `placed` are the texts, None of one that has an error.
    """

    ids: np.ndarray
    masks: LossMasks
    offsets: np.ndarray
    errors: Mapping[int, str]
    placed: Sequence[Placed | None]

    @property
    def weights(self) -> np.ndarray:
        """Loss weights float32 [T]."""
        return self.masks.weights

    def __getitem__(self, i: int) -> Rendered:
        part = slice(self.offsets[i], self.offsets[i + 1])
        return Rendered(self.ids[part], self.weights[part])
