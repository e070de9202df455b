"""Packed rows as tensors: one micro-batch is its rows' samples laid end to end, without the padding at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.layers.bounds import SampleBounds
from pipelines.layers.transfer import to_device

Row = Mapping[str, Any]
"""One packed row: input_ids int32 [row_tokens], loss_weights float32 [row_tokens], sample_lengths, sample_ids."""


@dataclass(frozen=True)
class MicroBatch:
    """T tokens of N samples. `trained` [M] indexes the positions whose next token is in the loss.

    `loss_tokens` is the sum of the loss weights: the number of loss tokens where no turn is weighted.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    bounds: SampleBounds
    trained: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    loss_tokens: float

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]


def collate(rows: Sequence[Row], device: torch.device | str = "cpu") -> MicroBatch:
    """Lay packed rows end to end. No rows give a filler of one token with no loss, so that every rank does a backward.

    The token after position t is predicted at t; a sample's first token is predicted by nothing, so it never trains.
    """
    if not rows:
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        return MicroBatch(
            zero[None],
            zero[None],
            SampleBounds.of(torch.ones(1, dtype=torch.int64), device),
            zero,
            zero,
            torch.zeros(1, device=device),
            0.0,
        )
    lengths = np.concatenate([np.asarray(row["sample_lengths"], dtype=np.int64) for row in rows])
    used = [int(np.sum(row["sample_lengths"])) for row in rows]
    ids = np.concatenate(
        [np.asarray(row["input_ids"])[:n] for row, n in zip(rows, used, strict=True)]
    )
    weights = np.concatenate(
        [np.asarray(row["loss_weights"])[:n] for row, n in zip(rows, used, strict=True)]
    )
    starts = np.cumsum(lengths) - lengths
    weights = weights.astype(np.float32, copy=True)
    weights[starts] = 0.0
    labels = np.flatnonzero(weights)
    positions = np.arange(len(ids)) - np.repeat(starts, lengths)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(array)), device)

    return MicroBatch(
        input_ids=tensor(ids.astype(np.int64))[None],
        position_ids=tensor(positions)[None],
        bounds=SampleBounds.of(torch.from_numpy(lengths), device),
        trained=tensor(labels - 1),
        targets=tensor(ids[labels].astype(np.int64)),
        weights=tensor(weights[labels]),
        loss_tokens=float(weights.sum(dtype=np.float64)),
    )
