"""Rendered conversations: their tokens and loss weights, alone and as a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.chat.loss_mask import LossMasks
from pipelines.chat.spans import ByteSpans, PlainSpans

# T: tokens of all conversations of a batch


@dataclass(frozen=True)
class Rendered:
    """Token ids int32 [T] and loss weights float32 [T]; weight 0 masks a token."""

    input_ids: np.ndarray
    loss_weights: np.ndarray

    @property
    def num_loss_tokens(self) -> int:
        return int(np.count_nonzero(self.loss_weights))


class RenderedText(NamedTuple):
    """A rendered text of `num_bytes` bytes and its spans, ready to be encoded.

    `injection` is set only when a message spells a special token: the encoder must then keep the
    spans in it plain text.
    """

    text: str
    num_bytes: int
    spans: ByteSpans
    injection: PlainSpans | None = None


@dataclass(frozen=True)
class RenderedBatch:
    """`ids` int32 [T] and their masks. Conversation i has the tokens `offsets[i]:offsets[i + 1]`.

    A conversation with an error has no tokens.
    """

    ids: np.ndarray
    masks: LossMasks
    offsets: np.ndarray
    errors: Mapping[int, str]

    @property
    def weights(self) -> np.ndarray:
        """Loss weights float32 [T]."""
        return self.masks.weights

    def __getitem__(self, i: int) -> Rendered:
        part = slice(self.offsets[i], self.offsets[i + 1])
        return Rendered(self.ids[part], self.weights[part])
