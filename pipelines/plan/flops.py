"""Floating-point operations of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.plan.shape import ModelShape

RECOMPUTED_SHARE = {"off": 0.0, "selective": 0.5, "full": 1.0}
"""The share of the layers' forward that train.gradient_checkpointing computes a second time."""


def step_flops(
    shape: ModelShape,
    tokens: int,
    num_loss_tokens: int,
    squared_lengths: int,
    full: bool,
    recomputed: float = 0.0,
) -> float:
    """Operations of a forward and a backward of `tokens`, of which `num_loss_tokens` pass the head.

    A weight takes 2 operations per token forward, 2 for the gradient of its input and, if every
    weight trains (`full`), 2 for its own gradient. Adapters are left out: they are below 1 %.
    Causal attention takes 2 operations per pair of tokens forward and 4 backward; `squared_lengths`
    is the sum of the squared sample lengths. `recomputed` is the share of the layers' linears that
    run a second time; leave it at 0 for MFU, which counts useful work only.
    """
    per_weight = 6.0 if full else 4.0
    linear, attention = shape.linear * tokens, shape.layers * shape.queries
    useful = (linear + shape.head * num_loss_tokens) * per_weight
    return useful + 6.0 * attention * squared_lengths + 2.0 * recomputed * linear


def row_flops(shape: ModelShape, row: Mapping[str, Any], full: bool = False) -> float:
    """`step_flops` of one packed row, without recomputing."""
    lengths = np.asarray(row["sample_lengths"], dtype=np.int64)
    num_loss_tokens = int(np.count_nonzero(row["loss_weights"]))
    return step_flops(shape, int(lengths.sum()), num_loss_tokens, int((lengths**2).sum()), full)
