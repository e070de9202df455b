"""Samples and adapters for the trials of tiny bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config.schema import LoraConfig, ModelConfig
from pipelines.model.tiny_base import TINY_VOCABULARY

LENGTHS = (40, 7, 23, 12)
ROW_TOKENS = 96
_FIRST_ID = 4  # the special tokens of a tiny base have smaller ids


def samples(seed: int = 0) -> list[np.ndarray]:
    """Random token ids, int32, of samples with the lengths of LENGTHS."""
    generator = np.random.default_rng(seed)
    return [
        generator.integers(_FIRST_ID, TINY_VOCABULARY, length).astype(np.int32)
        for length in LENGTHS
    ]


def save_random_adapter(base: Path, lora: LoraConfig, folder: Path, seed: int) -> None:
    """Write an adapter of a tiny base whose A and B are random, so that it changes every answer."""
    import torch

    from pipelines.model.base import load_base
    from pipelines.model.lora import attach, trainable_parameters
    from pipelines.model.lora_save import save_adapter

    model: Any = attach(load_base(ModelConfig(base=str(base), dtype="fp32"), "cpu"), lora, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable_parameters(model).values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    save_adapter(model, folder, str(base))
