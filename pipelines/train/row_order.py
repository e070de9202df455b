"""The packed rows that each optimizer step trains on, for any number of ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipelines.config.schema import TrainConfig


@dataclass(frozen=True)
class RowOrder:
    """The order of `num_rows` packed rows under `config`'s seed, epochs and global batch.

    It does not depend on the world size, so a run may resume with another number of ranks. A step
    never crosses the end of an epoch: an epoch's last step may be smaller.
    """

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
        """Indices of the rows of step 0 .. num_steps - 1 over all ranks, int64."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _permutation(self.config.seed, epoch, self.num_rows)
        return order[within * self.config.global_batch : (within + 1) * self.config.global_batch]

    def rows_of_rank(self, first_step: int, rank: int, world_size: int) -> np.ndarray:
        """Indices of one rank's rows from `first_step` to the end, in the order of the steps."""
        parts = [self.rows_of(step)[rank::world_size] for step in range(first_step, self.num_steps)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """The order of an epoch's rows. Read-only, because all steps of the epoch share the array."""
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    order.setflags(write=False)
    return order
