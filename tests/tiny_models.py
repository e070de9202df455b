"""Tiny random causal models of any architecture of transformers, as training loads them."""

from __future__ import annotations

from typing import Any

import numpy as np

SIZES = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.1,
}  # fmt: skip
WINDOWS = ["sliding_attention", "full_attention"]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},  # the fused layers need a power of two of at least 32
    "qwen3": {"head_dim": 32},
    "olmo2": {},
    "gemma3_text": {"head_dim": 32, "sliding_window": 24, "layer_types": WINDOWS},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "gpt_oss": {
        "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 512,
        "layer_types": WINDOWS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "mistral": {"sliding_window": None},
    "cohere": {"logit_scale": 0.25},
    "phi3": {
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
            "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
        },
    },
    "qwen3_5_text": {
        "head_dim": 32, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 16,
        "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16, "mamba_expand": 2,
        "num_local_experts": 0, "shared_intermediate_size": 96, "logits_scaling": 1.0,
    },
    "jamba": {
        "mamba_d_state": 8, "mamba_dt_rank": 8, "num_experts": 2,
        "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1,
    },
    "gpt_neox": {},
}  # fmt: skip


def tiny_model(kind: str, dtype: str = "float32", device: str = "cpu", **values: Any) -> Any:
    """A frozen model in eval mode; sinks, norms and biases are random, too.

    `values` are further ones of its configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipelines.layers.attention import PACKED

    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind], **values})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.randn_like(parameter)
                parameter.data += noise + 1 if "sink" in name else 0.1 * noise
    return model.to(device, getattr(torch, dtype)).requires_grad_(False).eval()


def random_samples(lengths: tuple[int, ...] = (60, 5, 40, 33, 12)) -> list[np.ndarray]:
    """Samples of random token ids, the longest first."""
    random = np.random.default_rng(0)
    return [random.integers(2, SIZES["vocab_size"], length, dtype=np.int32) for length in lengths]
