"""Put the fused forward on every decoder layer that it fits, and say why not on the others."""

from __future__ import annotations

from typing import Any, cast

import torch

from pipelines.model.frozen import kind_of
from pipelines.model.kernels import kernels_for
from pipelines.train.attention import SampleBounds, padded_attention
from pipelines.train.fused.functions import GatedAdded, LinearsAdded, NormedLinears, RotaryAttention, split_heads
from pipelines.train.fused.linears import AdaptedLinears

_FAMILIES = ("Llama", "Mistral", "Qwen2")
_LINEARS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


def fuse(model: Any, stack: bool) -> str:
    """Give the decoder layers of an adapted model their fused forward; returns why that was not possible, else "".

    `stack` lays the weights of linears with one input into one buffer; ZeRO-3 cannot have that.
    """
    base = model.get_base_model()
    layers = list(base.model.layers) if hasattr(base, "model") and hasattr(base.model, "layers") else []
    reason = _misfit(base.config, layers)
    if reason:
        return reason
    for layer in layers:
        layer.forward = _FusedLayer(layer, stack)
    base.model.norm.forward = _FusedNorm(base.model.norm)
    return ""


class _FusedLayer:
    """A decoder layer's forward over one packed micro-batch: hidden_states [1, T, h] -> [1, T, h]."""

    def __init__(self, layer: Any, stack: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._attention, self._norms = attention, (layer.input_layernorm, layer.post_attention_layernorm)
        self._qkv = AdaptedLinears([attention.q_proj, attention.k_proj, attention.v_proj], stack)
        self._o = AdaptedLinears([attention.o_proj], stack)
        self._gate_up = AdaptedLinears([mlp.gate_proj, mlp.up_proj], stack)
        self._down = AdaptedLinears([mlp.down_proj], stack)

    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        bounds: SampleBounds,
        **_: Any,
    ) -> torch.Tensor:
        x = hidden_states[0]
        tables = (position_embeddings[0][0], position_embeddings[1][0])
        qkv, x = cast(Any, NormedLinears.apply(x, self._norms[0], self._qkv, *self._qkv.adapters()))
        x = LinearsAdded.apply(self._attend(qkv, tables, bounds), x, self._o, *self._o.adapters())
        gate_up, x = cast(Any, NormedLinears.apply(x, self._norms[1], self._gate_up, *self._gate_up.adapters()))
        x = GatedAdded.apply(gate_up, x, self._down, *self._down.adapters())
        return cast(torch.Tensor, x)[None]

    def _attend(
        self, qkv: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], bounds: SampleBounds
    ) -> torch.Tensor:
        if qkv.is_cuda and qkv.dtype in (torch.bfloat16, torch.float16):
            return cast(torch.Tensor, RotaryAttention.apply(qkv, tables, bounds, self._attention))
        q, k, v = split_heads(qkv, self._attention)
        q, k = (_turned(heads, *tables) for heads in (q, k))
        return padded_attention(q, k, v, bounds, self._attention.scaling).flatten(1)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


class _FusedNorm:
    """The final norm, [1, T, h] -> [1, T, h]."""

    def __init__(self, norm: Any) -> None:
        self._norm = norm

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, _Norm.apply(hidden_states[0], self._norm))[None]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, norm: Any) -> torch.Tensor:
        y, rstd = kernels_for(x).rms_norm(x, norm.weight, norm.variance_epsilon)
        ctx.norm = norm
        ctx.save_for_backward(x, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, rstd = ctx.saved_tensors
        return kernels_for(x).rms_norm_backward(grads[0].contiguous(), x, ctx.norm.weight, rstd, None), None


def _misfit(config: Any, layers: list[Any]) -> str:
    """Why these layers cannot be fused, or ""."""
    if not layers or type(layers[0]).__name__ not in [f"{family}DecoderLayer" for family in _FAMILIES]:
        name = type(layers[0]).__name__ if layers else "this architecture"
        return f"{name} is not of the families {', '.join(_FAMILIES)}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    for layer in layers:
        for part, names in _LINEARS.items():
            for name in names:
                module = getattr(getattr(layer, part), name)
                reason = _odd_adapter(module)
                if reason:
                    return f"{part}.{name} {reason}"
    return ""


def _odd_adapter(module: Any) -> str:
    """What makes an adapted (or plain) linear other than W0 x + scale B A x, or ""."""
    if hasattr(module, "original_module"):
        return "is trained whole"
    base = module.get_base_layer() if hasattr(module, "lora_A") else module
    if not kind_of(base) or base.weight.requires_grad:
        return f"is a {type(base).__name__}" if not kind_of(base) else "is trained whole"
    if base is module:
        return ""
    if any(getattr(dropout, "p", 0.0) > 0 for dropout in module.lora_dropout.values()):
        return "has LoRA dropout"
    if any(getattr(module, "use_dora", {}).values()):
        return "has DoRA"
    return ""
