"""The fused forward of a decoder layer, and putting it on every layer of a model that it fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from pipelines.layers.attention_block import AttentionBlock, MicroBatchContext
from pipelines.layers.bounds import SampleBounds
from pipelines.layers.families import decoder_layers, unfused_reason
from pipelines.layers.kernels import kernels_for
from pipelines.layers.mlp_block import MlpBlock


def fuse(model: Any, stack: bool, recompute: str) -> str:
    """Put the fused forward on the decoder layers of an adapted model.

    Returns the reason why that is not possible, else "". `stack` moves the weights of linears with
    a common input into one buffer, which ZeRO-3 does not allow. `recompute` is the recipe's
    gradient_checkpointing: "off" saves 2 h + 2 q + 2 kv + 2 i values per token and layer,
    "selective" computes gates and ups again, "full" saves the layer's input only. No mode computes
    the down projection again.
    """
    base = model.get_base_model()
    reason = unfused_reason(model, base.get_input_embeddings().weight.device)
    if reason:
        return reason
    for layer in decoder_layers(base):
        # Recomputing is part of the fused backward, so transformers must not do it as well.
        layer.gradient_checkpointing = False
        layer.forward = _FusedLayer(layer, stack, recompute)
    base.model.norm.forward = _FusedNorm(base.model.norm)
    return ""


@contextmanager
def without_fused_layers(model: Any) -> Iterator[None]:
    """Inside, the modules that `fuse` changed run their own forward; nothing for other models."""
    forwards = {
        module: module.__dict__.pop("forward")
        for module in model.modules()
        if isinstance(module.__dict__.get("forward"), (_FusedLayer, _FusedNorm))
    }
    try:
        yield
    finally:
        for module, forward in forwards.items():
            module.forward = forward


class _FusedLayer:
    """A decoder layer's forward over a packed micro-batch: hidden_states [1, T, h] -> [1, T, h]."""

    def __init__(self, layer: Any, stack: bool, recompute: str) -> None:
        self.attention = AttentionBlock(layer.self_attn, layer.input_layernorm, stack)
        self.mlp = MlpBlock(layer.mlp, layer.post_attention_layernorm, stack)
        self.recompute = recompute

    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        bounds: SampleBounds,
        **_: Any,
    ) -> torch.Tensor:
        context = MicroBatchContext(position_embeddings[0][0], position_embeddings[1][0], bounds)
        # Adapters are arguments, so that autograd delivers their gradients to the parameters.
        adapters = [*self.attention.adapters(), *self.mlp.adapters()]
        # squeeze, not [0]: the backward of indexing allocates zeros and copies the gradient in.
        x = hidden_states.squeeze(0)
        return cast(torch.Tensor, _Layer.apply(x, self, context, *adapters))[None]


class _Layer(torch.autograd.Function):
    """One autograd node per layer: the blocks save and free their tensors themselves."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layer: _FusedLayer,
        context: MicroBatchContext,
        *adapters: torch.Tensor,
    ) -> torch.Tensor:
        middle, attention_saved = layer.attention.forward(x, context)
        y, mlp_saved = layer.mlp.forward(cast(torch.Tensor, middle))
        ctx.layer, ctx.context, ctx.num_attention = layer, context, len(attention_saved)
        saved = {
            "off": (x, middle, *attention_saved, *mlp_saved),
            "selective": (x, middle, *attention_saved),
            "full": (x,),
        }
        # As attributes of ctx the tensors would live until the graph is freed.
        ctx.save_for_backward(*saved[layer.recompute])
        return cast(torch.Tensor, y)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        layer, context, count = ctx.layer, ctx.context, ctx.num_attention
        x, *saved = ctx.saved_tensors
        if saved:
            middle, attention_saved, mlp_saved = (
                saved[0],
                tuple(saved[1 : 1 + count]),
                tuple(saved[1 + count :]),
            )
        else:
            middle, attention_saved = layer.attention.forward(x, context)
            mlp_saved = ()
        if not mlp_saved:
            _, mlp_saved = layer.mlp.forward(middle, recompute=True)
        d_middle, mlp_grads = layer.mlp.backward(grads[0].contiguous(), middle, mlp_saved)
        # The first layer's input needs no gradient, since the embeddings are frozen.
        dx, attention_grads = layer.attention.backward(
            d_middle, x, context, attention_saved, ctx.needs_input_grad[0]
        )
        # One gradient per argument of forward: x, layer, context, then the adapters in their order.
        return dx, None, None, *attention_grads, *mlp_grads


class _FusedNorm:
    """The final norm's forward, [1, T, h] -> [1, T, h]."""

    def __init__(self, norm: Any) -> None:
        self.norm = norm

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, _Norm.apply(hidden_states.squeeze(0), self.norm))[None]


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
