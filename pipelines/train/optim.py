"""Learning-rate schedules and the optimizer of the adapter."""

from __future__ import annotations

import math

import torch

from pipelines.recipe import TrainConfig


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
    return config.lr * (0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done)


def build_optimizer(parameters: list[torch.nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), betas 0.9 / 0.999, weight decay as the recipe says (0)."""
    return torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=config.weight_decay)
