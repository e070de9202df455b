"""Checks that the fused layers fit an adapted model, with the reason if they do not."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.layers.attention_block import head_norms
from pipelines.layers.fp8 import SHARED_INPUT
from pipelines.layers.frozen_linears import kind_of
from pipelines.layers.kernels import MIN_COMPUTE_CAPABILITY, supports_kernels

FUSED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""The model types of transformers whose decoder layers have a fused form."""

_LINEARS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def unfused_reason(model: Any, device: torch.device) -> str:
    """The reason why the fused layers do not fit an adapted model on `device`; "" if they fit.

    The model may be on the meta device, as for a memory plan; then quantization is not visible.
    """
    base = model.get_base_model()
    config, layers = base.config, decoder_layers(base)
    if not layers or config.model_type not in FUSED_FAMILIES:
        return f"{config.model_type} is none of {', '.join(FUSED_FAMILIES)}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    on_gpu = device.type == "cuda"
    if on_gpu and not supports_kernels(device):
        oldest = ".".join(map(str, MIN_COMPUTE_CAPABILITY))
        return f"{torch.cuda.get_device_name(device)} is older than compute capability {oldest}"
    size = layers[0].self_attn.head_dim
    if on_gpu and (size & (size - 1) or size < 32):  # Triton's tiles are powers of two
        return f"its heads have {size} values, not a power of two of at least 32"
    dtype = base.get_input_embeddings().weight.dtype
    reasons = (_layer_reason(layer, base.model.norm, dtype) for layer in layers)
    return next(filter(None, reasons), "")


def decoder_layers(base: Any) -> list[Any]:
    """The decoder layers of a causal language model; empty where they are not in `model.layers`."""
    return list(base.model.layers) if hasattr(getattr(base, "model", None), "layers") else []


def _layer_reason(layer: Any, final_norm: Any, dtype: torch.dtype) -> str:
    norms = (
        layer.input_layernorm,
        layer.post_attention_layernorm,
        final_norm,
        *head_norms(layer.self_attn),
    )
    for norm in norms:
        # PEFT wraps a module of modules_to_save and keeps the frozen one as original_module.
        if hasattr(norm, "original_module") or norm.weight.requires_grad:
            return "a norm is trained"
    linears = {
        name: getattr(getattr(layer, part), name)
        for part, names in _LINEARS.items()
        for name in names
    }
    for name, module in linears.items():
        reason = _linear_reason(module, dtype)
        if reason:
            return f"{name} {reason}"
    for names in SHARED_INPUT:
        if len({kind_of(_base_linear(linears[name])) for name in names}) > 1:
            return f"{', '.join(names)} are not quantized in the same way"
    return ""


def _base_linear(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "lora_A") else module


def _linear_reason(module: Any, dtype: torch.dtype) -> str:
    """The difference of a linear from W0 x + scale B A x or W0 x with frozen W0; "" if none."""
    adapted, base = hasattr(module, "lora_A"), _base_linear(module)
    if hasattr(module, "original_module") or (kind_of(base) and base.weight.requires_grad):
        return "is trained itself"
    if not kind_of(base):
        return f"is a {type(base).__name__}"
    # NF4 weights are dequantized to the activations' dtype.
    if kind_of(base) == "nf4" and base.compute_dtype not in (None, dtype):
        return f"computes in {base.compute_dtype}, the model in {dtype}"
    if adapted and any(getattr(dropout, "p", 0.0) > 0 for dropout in module.lora_dropout.values()):
        return "has LoRA dropout"
    if adapted and any(getattr(module, "use_dora", {}).values()):
        return "has DoRA"
    return ""
