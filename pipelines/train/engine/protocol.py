"""What the loop asks of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipelines.train.batch import MicroBatch


@dataclass(frozen=True)
class OptimizerState:
    """The trained fp32 weights and Adam moments by parameter name, whole and free of any world size; on CPU.

    `step` counts Adam's updates, which skipped steps leave behind the loop's; `scaler` is fp16's loss scaling.
    """

    weights: dict[str, torch.Tensor]
    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]
    step: int
    scaler: dict[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """What the loop needs of a distribution strategy. `gather` and `restore` are collective: every rank calls them."""

    rank: int
    world_size: int
    device: torch.device
    scale_lowered: bool

    def accumulate(self, batch: MicroBatch, global_loss_tokens: torch.Tensor) -> torch.Tensor: ...

    def step(self, lr: float) -> float: ...

    def loss_sum(self, batch: MicroBatch) -> float: ...

    def sum_over_ranks(self, values: Sequence[float] | torch.Tensor) -> torch.Tensor: ...

    def gather(self) -> OptimizerState: ...

    def restore(self, state: OptimizerState) -> None: ...
