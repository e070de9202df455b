"""Models of real shapes with random weights, and packed rows of Alpaca's lengths."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "1b": {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "70b": {
        "vocab_size": 128_256, "hidden_size": 8192, "intermediate_size": 28_672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    },
    "qwen3-8b": {
        "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "qwen3-tiny": {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip
"""Shapes of Llama 3 and 3.2, here with untied heads, of Qwen3, and two tiny ones for tests."""

LEARNABLE, KNOWN = 16, 0.7
"""Token ids of learnable rows, and the share of their tokens that the previous one determines."""


def config_of(shape: str, attention: str) -> Any:
    """The transformers configuration of a shape."""
    from transformers import LlamaConfig, Qwen3Config

    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    settings: dict[str, Any] = {"rope_parameters": rope, "attn_implementation": attention}
    return (Qwen3Config if shape.startswith("qwen3") else LlamaConfig)(**SHAPES[shape], **settings)


def random_model(
    shape: str, attention: str, quantization: str, device: torch.device, dtype: torch.dtype
) -> Any:
    """A frozen model with normal weights (0.02), created on `device`.

    It is filled module by module, so that a 4-bit 70B never exists in 16 bits.
    """
    from transformers import AutoModelForCausalLM

    config = config_of(shape, attention)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator(device).manual_seed(0)
    head = model.get_output_embeddings()
    # Only parents are listed: a list of all modules would keep every linear's 16-bit weight alive
    # after it has been quantized.
    for parent in [
        module for module in model.modules() if next(module.children(), None) is not None
    ]:
        for name, module in list(parent.named_children()):
            if getattr(module, "weight", None) is None:
                continue
            weight = torch.ones(module.weight.shape, dtype=dtype, device=device)
            if weight.dim() == 2:
                weight.normal_(0, 0.02, generator=generator)
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
            if quantization == "nf4" and isinstance(module, torch.nn.Linear) and module is not head:
                setattr(parent, name, _nf4(module, device, dtype))
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    if quantization == "fp8":
        from pipelines.layers.fp8 import to_fp8

        to_fp8(model, head)
    return model.requires_grad_(False).eval()


def _nf4(linear: torch.nn.Linear, device: torch.device, dtype: torch.dtype) -> Any:
    import bitsandbytes.nn as bnb

    with torch.device("meta"):
        quantized: Any = cast(Any, bnb).Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=dtype,
            quant_type="nf4",
            quant_storage=dtype,
        )
    options: dict[str, Any] = {
        "quant_type": "nf4",
        "compress_statistics": True,
        "quant_storage": dtype,
    }
    packed = cast(Any, bnb).Params4bit(
        linear.weight.data, requires_grad=False, module=quantized, **options
    )
    quantized.weight = packed.to(device)
    return quantized


def sample_lengths(total: int, random: np.random.Generator) -> np.ndarray:
    """Lengths of about 200 tokens, as in Alpaca with a chat template; int64, sum is `total`."""
    cuts = np.cumsum(
        np.clip(random.lognormal(5.15, 0.55, max(4, total // 16)), 16, 1000).astype(np.int64)
    )
    return np.diff(np.append(cuts[cuts < total], total), prepend=0)


def random_row(
    index: int, total: int, vocabulary: int, loss_share: float = 2 / 3, learnable: bool = False
) -> dict[str, Any]:
    """One packed row of `total` tokens; the last `loss_share` of each sample is in the loss.

    Tokens are random. In a `learnable` row only 16 token ids occur, as many as an adapter's rank,
    and seven tokens in ten follow from the previous one by a permutation: knowing the ids gives a
    loss of ln(16) = 2.77 nats, knowing the permutation 1.36, the best possible.
    """
    random = np.random.default_rng(index)
    lengths = sample_lengths(total, random)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    within = np.arange(total) - starts
    weights = (within >= np.repeat((lengths * (1 - loss_share)).astype(np.int64), lengths)).astype(
        np.float32
    )
    ids = random.integers(0, vocabulary, total, dtype=np.int64)
    if learnable:
        follow = np.random.default_rng(0).permutation(min(LEARNABLE, vocabulary))
        ids, known = ids % len(follow), random.random(total) < KNOWN
        for at in np.flatnonzero(known & (within > 0)):
            ids[at] = follow[ids[at - 1]]
    return {
        "input_ids": ids.astype(np.int32), "loss_weights": weights, "sample_lengths": lengths,
        "sample_ids": [str(index)],
    }  # fmt: skip
