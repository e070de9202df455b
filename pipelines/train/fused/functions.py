"""The steps of a decoder layer with gradients written out, so that what is stored is chosen and not left to autograd.

Kept for the backward of a whole layer, for each token: the layer's input, q, k and v, attention's output, the input of
the MLP, gates and ups (4 h + 2 kv + 2 i values). Normalized inputs and the MLP's activation are computed again.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from pipelines.model.kernels import kernels_for
from pipelines.train.attention import SampleBounds, flash_backward, flash_forward
from pipelines.train.fused.linears import AdaptedLinears


class NormedLinears(torch.autograd.Function):
    """linears(rms_norm(x)) [T, N] and x itself, whose other uses then hand their gradient through here, added for free."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, norm: Any, linears: AdaptedLinears, *adapters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.norm, ctx.linears = norm, linears
        normed, rstd = kernels_for(x).rms_norm(x, norm.weight, norm.variance_epsilon)
        y, low = linears.forward(normed)
        ctx.save_for_backward(x, rstd, low)
        return y, x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        dy, d_passed = grads
        x, rstd, low = ctx.saved_tensors
        kernels, weight = kernels_for(x), ctx.norm.weight
        d_normed, d_low = ctx.linears.backward(dy, ctx.needs_input_grad[0])
        found = ctx.linears.gradients(dy, kernels.rms_apply(x, weight, rstd) if d_low is not None else x, low, d_low)
        dx = None if d_normed is None else kernels.rms_norm_backward(d_normed, x, weight, rstd, d_passed)
        return dx, None, None, *found


class LinearsAdded(torch.autograd.Function):
    """residual + linears(x), both [T, h]."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, residual: torch.Tensor, linears: AdaptedLinears, *adapters: torch.Tensor
    ) -> torch.Tensor:
        ctx.linears = linears
        y, low = linears.forward(x)
        ctx.save_for_backward(x, low)
        return y.add_(residual)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (dy,) = grads
        x, low = ctx.saved_tensors
        dx, d_low = ctx.linears.backward(dy, True)
        return dx, dy, None, *ctx.linears.gradients(dy, x, low, d_low)


class GatedAdded(torch.autograd.Function):
    """residual + down(silu(gate) * up), from gate and up side by side [T, 2 i]; its backward overwrites them."""

    @staticmethod
    def forward(
        ctx: Any, gate_up: torch.Tensor, residual: torch.Tensor, down: AdaptedLinears, *adapters: torch.Tensor
    ) -> torch.Tensor:
        ctx.linears = down
        y, low = down.forward(kernels_for(gate_up).swiglu(gate_up))
        ctx.save_for_backward(gate_up, low)
        return y.add_(residual)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (dy,) = grads
        gate_up, low = ctx.saved_tensors
        act, d_low = ctx.linears.backward(dy, True)  # the activation's gradient, until the next line
        kernels_for(act).swiglu_backward_(act, gate_up)
        return gate_up, dy, None, *ctx.linears.gradients(dy, act, low, d_low)


class RotaryAttention(torch.autograd.Function):
    """Rotary embedding and causal attention within samples: qkv [T, (H + 2 K) D] -> [T, H D]. GPU, half precision.

    q and k are turned where they lie.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], bounds: SampleBounds, module: Any
    ) -> torch.Tensor:
        ctx.tables, ctx.bounds, ctx.module = tables, bounds, module
        q, k, v = split_heads(qkv, module)
        turned = qkv[:, : qkv.shape[1] - v.shape[1] * v.shape[2]].unflatten(1, (-1, module.head_dim))
        kernels_for(qkv).rotate(turned, turned, *tables)
        out, held = flash_forward(q, k, v, bounds, module.scaling)
        ctx.save_for_backward(qkv, out, *held)
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        qkv, out, *held = ctx.saved_tensors
        q, k, v = split_heads(qkv, ctx.module)
        d_out = grads[0].contiguous().view_as(out)
        dq, dk, dv = flash_backward(d_out, q, k, v, out, held, ctx.bounds, ctx.module.scaling)
        d_qkv = torch.empty_like(qkv)
        into = split_heads(d_qkv, ctx.module)
        kernels_for(qkv).rotate(dq, into[0], *ctx.tables, inverse=True)
        kernels_for(qkv).rotate(dk, into[1], *ctx.tables, inverse=True)
        into[2].copy_(dv)
        return d_qkv, None, None, None


def split_heads(qkv: torch.Tensor, module: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of q [T, H, D], k and v [T, K, D] in qkv [T, (H + 2 K) D]."""
    size = module.head_dim
    heads = qkv.shape[1] // size
    kv = heads // (module.num_key_value_groups + 2)
    return cast(Any, qkv.unflatten(1, (heads, size)).split([heads - 2 * kv, kv, kv], 1))
