"""Learning-rate schedules."""

from __future__ import annotations

import math

from pipelines.config.schema import TrainConfig


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """The learning rate of step 0 .. num_steps - 1.

    Linear warm-up to `lr`, then a cosine or a line to zero, or constant. Warm-up covers the first
    `warmup_share` of the steps, rounded up. Its first step has a rate above zero, so no step is
    wasted.
    """
    warmup = math.ceil(config.warmup_share * num_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup) / max(1, num_steps - warmup)
    if config.schedule == "cosine":
        return config.lr * (0.5 * (1 + math.cos(math.pi * progress)))
    return config.lr * (1 - progress)
