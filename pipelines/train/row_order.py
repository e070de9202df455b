"""Which rows each step sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipelines.config.schema import TrainConfig


@dataclass(frozen=True)
class RowOrder:
    """Which packed rows each optimizer step sees. Steps never cross an epoch's end, so its last one may be smaller."""

    num_rows: int
    config: TrainConfig

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_rows / self.config.global_batch)

    @property
    def num_steps(self) -> int:
        steps = max(1, round(self.config.epochs * self.steps_per_epoch))
        return min(steps, self.config.max_steps or steps)

    def rows_of(self, step: int) -> np.ndarray:
        """Global indices of the packed rows of step 0 .. num_steps - 1, int64."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _permutation(self.config.seed, epoch, self.num_rows)
        return order[within * self.config.global_batch : (within + 1) * self.config.global_batch]

    def order(self, first_step: int, rank: int, world_size: int) -> np.ndarray:
        """The rows of one rank from `first_step` to the end, in the order in which it needs them."""
        parts = [self.rows_of(step)[rank::world_size] for step in range(first_step, self.num_steps)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """The rows of an epoch in its order; read-only, as all of its steps share it."""
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    order.setflags(write=False)
    return order
