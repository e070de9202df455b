"""Learning-rate schedules and the optimizer of the adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from pipelines.model.adam8 import quantized_adamw
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


def build_optimizer(parameters: Mapping[str, torch.nn.Parameter], config: TrainConfig, b_ratio: float) -> Any:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), betas 0.9 / 0.999, fused on a GPU, in one or two groups.

    With `b_ratio` other than 1 the B matrices are a group of their own, whose rate is `b_ratio` times that of the rest
    (LoRA+, Hayou et al. 2024, arXiv:2402.12354). A group's "ratio" says so to whoever sets the rate.
    """
    second = [p for name, p in parameters.items() if b_ratio != 1 and ".lora_B." in name]
    first = [p for name, p in parameters.items() if b_ratio == 1 or ".lora_B." not in name]
    groups = [{"params": group, "ratio": ratio} for group, ratio in ((first, 1.0), (second, b_ratio)) if group]
    options: dict[str, Any] = {"lr": config.lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": config.weight_decay}
    if config.optimizer != "adamw":
        return quantized_adamw(config.optimizer)(groups, **options)
    return torch.optim.AdamW(groups, fused=first[0].is_cuda, **options)
