"""Packed rows as tensors.

A micro-batch is one sequence: the samples of its rows end to end, without the rows' padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.layers.bounds import SampleBounds
from pipelines.layers.transfer import to_device

Row = Mapping[str, Any]
"""A packed row: input_ids int32, loss_weights fp32 [row_tokens], sample_lengths, sample_ids."""


@dataclass(frozen=True)
class MicroBatch:
    """T tokens of N samples, and the M of them that the loss predicts.

    - input_ids, position_ids [1, T] int64; a sample's positions start at 0.
    - bounds: where the samples begin and end, for attention.
    - label_positions [M] int64: indices in 0 .. T - 1 whose next token is in the loss.
    - targets [M] int64 and weights [M] fp32: those next tokens and their loss weights.
    - total_weight: the sum of the weights, which is M unless turns are weighted.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    bounds: SampleBounds
    label_positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    total_weight: float

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]


def collate(rows: Sequence[Row], device: torch.device | str = "cpu") -> MicroBatch:
    """Join packed rows into one micro-batch on `device`.

    The token after position t is predicted at t. Nothing predicts a sample's first token, so it has
    no loss. Without rows the result is a filler of one token with no loss, so that a rank without
    rows still joins the collectives of forward and backward.
    """
    if not rows:
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        return MicroBatch(
            input_ids=zero[None],
            position_ids=zero[None],
            bounds=SampleBounds.of(torch.ones(1, dtype=torch.int64), device),
            label_positions=zero,
            targets=zero,
            weights=torch.zeros(1, device=device),
            total_weight=0.0,
        )
    lengths = np.concatenate([np.asarray(row["sample_lengths"], dtype=np.int64) for row in rows])

    def joined(column: str) -> np.ndarray:
        return np.concatenate([np.asarray(row[column])[: count_tokens([row])] for row in rows])

    ids, weights = joined("input_ids"), joined("loss_weights")
    starts = np.cumsum(lengths) - lengths
    weights = weights.astype(np.float32, copy=True)  # the row's own array may be read-only
    weights[starts] = 0.0
    labels = np.flatnonzero(weights)
    positions = np.arange(len(ids)) - np.repeat(starts, lengths)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(array)), device)

    return MicroBatch(
        input_ids=tensor(ids.astype(np.int64))[None],
        position_ids=tensor(positions)[None],
        bounds=SampleBounds.of(torch.from_numpy(lengths), device),
        label_positions=tensor(labels - 1),
        targets=tensor(ids[labels].astype(np.int64)),
        weights=tensor(weights[labels]),
        total_weight=float(weights.sum(dtype=np.float64)),
    )


def collate_all(
    rows: Sequence[Row], micro_batch: int, num_batches: int, device: torch.device
) -> list[MicroBatch]:
    """A rank's rows as exactly `num_batches` micro-batches, fillers last.

    All ranks get the same number, so none misses a collective.
    """
    return [
        collate(rows[i * micro_batch : (i + 1) * micro_batch], device) for i in range(num_batches)
    ]


def count_tokens(rows: Sequence[Row]) -> int:
    """Tokens in packed rows without padding."""
    return int(sum(np.sum(row["sample_lengths"]) for row in rows))
