"""Learning-rate schedules."""

from __future__ import annotations

import math

from pipelines.config.schema import TrainConfig


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Rate of step 0 .. num_steps - 1: linear warm-up to `lr`, then cosine or linear to zero, or constant.

    Warm-up covers the first `warmup_share` of the steps, rounded up; its first step already moves.
    """
    warmup = math.ceil(config.warmup_share * num_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(1, num_steps - warmup)
    return config.lr * (
        0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    )
