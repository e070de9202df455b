"""The optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipelines.config.schema import TrainConfig
from pipelines.train.optimizer.bnb_adam import quantized_adamw


def build_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], config: TrainConfig, b_ratio: float
) -> Any:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), betas 0.9 / 0.999, fused on a GPU, in one or two groups.

    With `b_ratio` other than 1 the B matrices are a group of their own, whose rate is `b_ratio` times that of the rest
    (LoRA+, Hayou et al. 2024, arXiv:2402.12354). A group's "ratio" says so to whoever sets the rate.
    """
    second = [p for name, p in parameters.items() if b_ratio != 1 and ".lora_B." in name]
    first = [p for name, p in parameters.items() if b_ratio == 1 or ".lora_B." not in name]
    groups = [
        {"params": group, "ratio": ratio}
        for group, ratio in ((first, 1.0), (second, b_ratio))
        if group
    ]
    options: dict[str, Any] = {
        "lr": config.lr,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer != "adamw":
        return quantized_adamw(config.optimizer)(groups, **options)
    return torch.optim.AdamW(groups, fused=first[0].is_cuda, **options)
