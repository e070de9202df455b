"""The interface between the training loop and a distribution strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipelines.train.batch import MicroBatch


@dataclass(frozen=True)
class OptimizerState:
    """The trainable fp32 weights and Adam moments by parameter name, unsharded, on CPU.

    Nothing in it depends on the world size, the ZeRO stage or the optimizer's precision, so a run
    may resume under another one. `step` counts Adam's updates, which is less than the loop's step
    after skipped steps; `scaler` is the state of fp16's loss scaling, empty for other dtypes.
    """

    weights: dict[str, torch.Tensor]
    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]
    step: int
    scaler: dict[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """The methods that the training loop needs of a distribution strategy.

    Every method is collective: all ranks call it equally often. `scale_lowered` is true after a
    step that was skipped only because fp16's loss scale was too high.
    """

    rank: int
    world_size: int
    device: torch.device
    scale_lowered: bool

    def accumulate(self, batch: MicroBatch, global_weight: torch.Tensor) -> torch.Tensor:
        """Add the gradient of loss / `global_weight`; returns the summed loss, detached."""
        ...

    def step(self, lr: float) -> float:
        """Update the weights and zero the gradients; returns the gradient norm before clipping."""
        ...

    def loss_sum(self, batch: MicroBatch) -> float:
        """The summed loss, without gradients and dropout."""
        ...

    def sum_over_ranks(self, values: Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Each value summed over the ranks, float64 on the device."""
        ...

    def gather(self) -> OptimizerState:
        """The weights and moments of all ranks."""
        ...

    def restore(self, state: OptimizerState) -> None:
        """Put weights and moments back; the inverse of `gather`."""
        ...
