"""Put the fused forward on every decoder layer of a model that it fits, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from pipelines.layers.bounds import SampleBounds
from pipelines.layers.decoder_halves import AttentionHalf, MlpHalf, Where, head_norms
from pipelines.layers.families import FUSED_FAMILIES
from pipelines.layers.fp8 import ONE_INPUT
from pipelines.layers.frozen_linears import kind_of
from pipelines.layers.kernels import OLDEST, capable, kernels_for

_LINEARS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def fuse(model: Any, stack: bool, recompute: str) -> str:
    """Give the decoder layers of an adapted model their fused forward; returns why that was not possible, else "".

    `stack` lays the weights of linears with one input into one buffer; ZeRO-3 cannot have that. `recompute` is the
    recipe's gradient_checkpointing: off keeps 2 h + 2 q + 2 kv + 2 i values a token and layer, selective has gates and ups
    computed again, full keeps the layer's input only. No mode computes the MLP's last product again.
    """
    base = model.get_base_model()
    layers = (
        list(base.model.layers) if hasattr(base, "model") and hasattr(base.model, "layers") else []
    )
    reason = _misfit(base, layers)
    if reason:
        return reason
    for layer in layers:
        layer.gradient_checkpointing = False
        layer.forward = _FusedLayer(layer, stack, recompute)
    base.model.norm.forward = _fused_norm(base.model.norm)
    return ""


class _FusedLayer:
    """A decoder layer's forward over one packed micro-batch: hidden_states [1, T, h] -> [1, T, h]."""

    def __init__(self, layer: Any, stack: bool, recompute: str) -> None:
        self.attention = AttentionHalf(layer.self_attn, layer.input_layernorm, stack)
        self.mlp = MlpHalf(layer.mlp, layer.post_attention_layernorm, stack)
        self.recompute = recompute

    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        bounds: SampleBounds,
        **_: Any,
    ) -> torch.Tensor:
        where = Where(position_embeddings[0][0], position_embeddings[1][0], bounds)
        adapters = [*self.attention.adapters(), *self.mlp.adapters()]
        # Not [0], whose gradient is a tensor of zeros with a copy in it.
        return cast(torch.Tensor, _Layer.apply(hidden_states.squeeze(0), self, where, *adapters))[
            None
        ]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: _FusedLayer, where: Where, *adapters: torch.Tensor
    ) -> torch.Tensor:
        middle, of_attention = layer.attention.forward(x, where)
        y, of_mlp = layer.mlp.forward(cast(torch.Tensor, middle))
        ctx.layer, ctx.where, ctx.num_attention = layer, where, len(of_attention)
        kept = {
            "off": (x, middle, *of_attention, *of_mlp),
            "selective": (x, middle, *of_attention),
            "full": (x,),
        }
        ctx.save_for_backward(*kept[layer.recompute])
        return cast(torch.Tensor, y)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        layer, where, count = ctx.layer, ctx.where, ctx.num_attention
        x, *kept = ctx.saved_tensors
        if kept:
            middle, of_attention, of_mlp = (
                kept[0],
                tuple(kept[1 : 1 + count]),
                tuple(kept[1 + count :]),
            )
        else:
            middle, of_attention = layer.attention.forward(x, where)
            of_mlp = ()
        if not of_mlp:
            _, of_mlp = layer.mlp.forward(middle, whole=False)
        d_middle, of_mlp_found = layer.mlp.backward(grads[0].contiguous(), middle, of_mlp)
        dx, found = layer.attention.backward(
            d_middle, x, where, of_attention, ctx.needs_input_grad[0]
        )
        return dx, None, None, *found, *of_mlp_found


def _fused_norm(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The final norm's forward, [1, T, h] -> [1, T, h]."""
    return lambda hidden_states: cast(torch.Tensor, _Norm.apply(hidden_states.squeeze(0), norm))[
        None
    ]


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
        return kernels_for(x).rms_norm_backward(
            grads[0].contiguous(), x, ctx.norm.weight, rstd, None
        ), None


def _misfit(base: Any, layers: list[Any]) -> str:
    """Why these layers cannot be fused, or ""."""
    config, dtype = base.config, base.get_input_embeddings().weight.dtype
    if not layers or config.model_type not in FUSED_FAMILIES:
        return f"{config.model_type} is none of {', '.join(FUSED_FAMILIES)}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    weight = layers[0].input_layernorm.weight
    if weight.is_cuda and not capable(weight.device):
        return f"{torch.cuda.get_device_name(weight.device)} is older than compute capability {'.'.join(map(str, OLDEST))}"
    size = layers[0].self_attn.head_dim
    if (size & (size - 1) or size < 32) and weight.is_cuda:
        return f"its heads have {size} values, neither a power of two nor 32 at least"
    for layer in layers:
        norms = (
            layer.input_layernorm,
            layer.post_attention_layernorm,
            base.model.norm,
            *head_norms(layer.self_attn),
        )
        for norm in norms:
            if hasattr(norm, "original_module") or norm.weight.requires_grad:
                return "a norm is trained whole"
        linears = {
            name: getattr(getattr(layer, part), name)
            for part, names in _LINEARS.items()
            for name in names
        }
        for name, module in linears.items():
            reason = _odd_linear(module, dtype)
            if reason:
                return f"{name} {reason}"
        for names in ONE_INPUT:
            if len({kind_of(_base_of(linears[name])) for name in names}) > 1:
                return f"{', '.join(names)} are held in different ways"
    return ""


def _base_of(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "lora_A") else module


def _odd_linear(module: Any, dtype: torch.dtype) -> str:
    """What makes an adapted (or plain) linear other than W0 x + scale B A x with a frozen W0, or ""."""
    adapted, base = hasattr(module, "lora_A"), _base_of(module)
    if hasattr(module, "original_module") or (kind_of(base) and base.weight.requires_grad):
        return "is trained whole"
    if not kind_of(base):
        return f"is a {type(base).__name__}"
    if kind_of(base) == "nf4" and base.compute_dtype not in (None, dtype):
        return f"computes in {base.compute_dtype}, other than the model's {dtype}"
    if adapted and any(getattr(dropout, "p", 0.0) > 0 for dropout in module.lora_dropout.values()):
        return "has LoRA dropout"
    if adapted and any(getattr(module, "use_dora", {}).values()):
        return "has DoRA"
    return ""
