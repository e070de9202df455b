"""Builds the optimizer of a recipe's section `train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipelines.config.schema import TrainConfig
from pipelines.train.optimizer.bnb_adam import bnb_adamw


def build_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], config: TrainConfig, b_ratio: float
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), betas 0.9 and 0.999; fused on a GPU.

    If `b_ratio` is not 1, the B matrices form a second parameter group, whose learning rate is
    `b_ratio` times the first group's (LoRA+, Hayou et al. 2024, arXiv:2402.12354). Each group has
    that factor as "ratio"; the engine multiplies it into the rate of each step.
    """
    b_matrices = [p for name, p in parameters.items() if b_ratio != 1 and ".lora_B." in name]
    others = [p for name, p in parameters.items() if b_ratio == 1 or ".lora_B." not in name]
    groups = [
        {"params": members, "ratio": ratio}
        for members, ratio in ((others, 1.0), (b_matrices, b_ratio))
        if members
    ]
    options: dict[str, Any] = {
        "lr": config.lr,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer != "adamw":
        return bnb_adamw(config.optimizer)(groups, **options)
    return torch.optim.AdamW(groups, fused=others[0].is_cuda, **options)
