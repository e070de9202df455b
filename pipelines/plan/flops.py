"""Operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class ModelSize:
    """What a token costs: weights of the linears, of the head, layers x heads x head size for attention; in which dtype."""

    linear: int
    head: int
    attention: int
    dtype: torch.dtype

    @staticmethod
    def of(base: Any) -> ModelSize:
        """The size of a causal language model without adapters, whatever its weights are held in."""
        head, config = base.get_output_embeddings(), base.config
        sizes = {
            module: module.in_features * module.out_features
            for module in base.modules()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        }
        head_size = sizes.pop(head, 0)
        heads = getattr(config, "num_attention_heads", 0)
        each = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        layers, dtype = (
            getattr(config, "num_hidden_layers", 0),
            base.get_input_embeddings().weight.dtype,
        )
        return ModelSize(sum(sizes.values()), head_size, layers * heads * each, dtype)

    def step_flops(self, tokens: int, trained: int, squares: int, full: bool) -> float:
        """Operations of a forward and backward of `tokens`, of which `trained` pass the head.

        A weight costs 2 a token forward, 2 for the gradient of its input, 2 more for its own where it trains (`full`);
        adapters are left out, being under a hundredth. Causal attention costs 2 a pair of tokens forward and 4
        backward; `squares` is the sum of the squared sample lengths. Recomputing is not counted: it is no progress.
        """
        return (self.linear * tokens + self.head * trained) * (
            6.0 if full else 4.0
        ) + 6.0 * self.attention * squares

    def row_flops(self, row: Mapping[str, Any], full: bool = False) -> float:
        """`step_flops` of one packed row."""
        lengths = np.asarray(row["sample_lengths"], dtype=np.int64)
        trained = int(np.count_nonzero(row["loss_weights"]))
        return self.step_flops(int(lengths.sum()), trained, int((lengths**2).sum()), full)
