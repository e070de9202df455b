"""The two halves of a decoder layer, each a forward that says what its backward needs, and that backward.

T = tokens, h = hidden, i = intermediate width, H / K = query / key-value heads, D = head size. A half's `forward` returns
its output and what it would keep; without `whole` it stops before its last product, as recomputing wants. `backward`
gives dx and the gradients of its adapters, in the order of `adapters`. The MLP's `backward` overwrites what was kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch

from pipelines.model.kernels import kernels_for
from pipelines.train.attention import SampleBounds, flash_backward, flash_forward, padded_attention
from pipelines.train.fused.linears import AdaptedLinears

Kept = tuple[torch.Tensor | None, ...]


class Where(NamedTuple):
    """What all layers of a micro-batch share: rotary tables cos and sin [T, D], and the samples' bounds."""

    cos: torch.Tensor
    sin: torch.Tensor
    bounds: SampleBounds


class AttentionHalf:
    """x + o(attention(rotary(qkv(rms_norm(x)))))."""

    def __init__(self, module: Any, norm: Any, stack: bool) -> None:
        self._module, self._norm = module, norm
        self._qkv = AdaptedLinears([module.q_proj, module.k_proj, module.v_proj], stack)
        self._o = AdaptedLinears([module.o_proj], stack)

    def adapters(self) -> list[torch.Tensor]:
        return [*self._qkv.adapters(), *self._o.adapters()]

    def forward(self, x: torch.Tensor, where: Where, whole: bool = True) -> tuple[torch.Tensor | None, Kept]:
        """x [T, h] -> [T, h]."""
        normed, rstd = kernels_for(x).rms_norm(x, self._norm.weight, self._norm.variance_epsilon)
        qkv, low = self._qkv.forward(normed)
        self._qkv.add_(qkv, low)
        q, k, v = self._heads(qkv)
        turned = qkv[:, : (q.shape[1] + k.shape[1]) * q.shape[2]].unflatten(1, (-1, q.shape[2]))
        kernels_for(x).rotate(turned, turned, where.cos, where.sin)
        out, held = _attend(q, k, v, where.bounds, self._module.scaling)
        flat = out.flatten(1)
        if not whole:
            return None, (rstd, low, qkv, out, self._o.low(flat), *held)
        y, low_o = self._o.forward(flat)
        kernels_for(x).add_(y, self._o.added(low_o)[0], x)
        return y, (rstd, low, qkv, out, low_o, *held)

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, where: Where, kept: Kept, wants_dx: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        rstd, low, qkv, out, low_o, *held = cast(Any, kept)
        d_low_o = self._o.d_low(dy)
        d_out = self._o.dx(dy, d_low_o).view_as(out)
        found_o = self._o.gradients(dy, out.flatten(1), low_o, d_low_o)
        d_heads = _attend_backward(d_out, self._heads(qkv), out, held, where.bounds, self._module.scaling)
        d_qkv = torch.empty_like(qkv)
        for into, gradient in zip(self._heads(d_qkv)[:2], d_heads[:2], strict=True):
            kernels_for(x).rotate(gradient, into, where.cos, where.sin, inverse=True)
        self._heads(d_qkv)[2].copy_(d_heads[2])
        d_low = self._qkv.d_low(d_qkv)
        normed = kernels_for(x).rms_apply(x, self._norm.weight, rstd) if d_low is not None else x
        found = self._qkv.gradients(d_qkv, normed, low, d_low) + found_o
        if not wants_dx:
            return None, found
        return kernels_for(x).rms_norm_backward(self._qkv.dx(d_qkv, d_low), x, self._norm.weight, rstd, dy), found

    def _heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of q [T, H, D], k and v [T, K, D] in qkv [T, (H + 2 K) D]."""
        size = self._module.head_dim
        heads = qkv.shape[1] // size
        kv = heads // (self._module.num_key_value_groups + 2)
        return cast(Any, qkv.unflatten(1, (heads, size)).split([heads - 2 * kv, kv, kv], 1))


class MlpHalf:
    """x + down(silu(gate(n)) * up(n)) with n = rms_norm(x)."""

    def __init__(self, module: Any, norm: Any, stack: bool) -> None:
        self._norm = norm
        self._gate_up = AdaptedLinears([module.gate_proj, module.up_proj], stack)
        self._down = AdaptedLinears([module.down_proj], stack)

    def adapters(self) -> list[torch.Tensor]:
        return [*self._gate_up.adapters(), *self._down.adapters()]

    def forward(self, x: torch.Tensor, whole: bool = True) -> tuple[torch.Tensor | None, Kept]:
        """x [T, h] -> [T, h]."""
        kernels = kernels_for(x)
        normed, rstd = kernels.rms_norm(x, self._norm.weight, self._norm.variance_epsilon)
        gate_up, low = self._gate_up.forward(normed)
        act = kernels.swiglu(gate_up, *self._gate_up.added(low))
        if not whole:
            return None, (rstd, low, gate_up, self._down.low(act))
        y, low_down = self._down.forward(act)
        kernels.add_(y, self._down.added(low_down)[0], x)
        return y, (rstd, low, gate_up, low_down)

    def backward(self, dy: torch.Tensor, x: torch.Tensor, kept: Kept) -> tuple[torch.Tensor, list[torch.Tensor]]:
        rstd, low, gate_up, low_down = cast(Any, kept)
        kernels = kernels_for(x)
        d_low_down = self._down.d_low(dy)
        act, lacking = self._down.dx_without(dy, d_low_down)  # the activation's gradient, until the next line
        kernels.swiglu_backward_(act, gate_up, *self._gate_up.added(low), lacking)
        found_down = self._down.gradients(dy, act, low_down, d_low_down)
        del act
        d_low = self._gate_up.d_low(gate_up)
        normed = kernels.rms_apply(x, self._norm.weight, rstd) if d_low is not None else x
        found = self._gate_up.gradients(gate_up, normed, low, d_low) + found_down
        del normed
        d_normed = self._gate_up.dx(gate_up, d_low)
        return kernels.rms_norm_backward(d_normed, x, self._norm.weight, rstd, dy), found


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: SampleBounds, scaling: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return flash_forward(q, k, v, bounds, scaling)
    return padded_attention(q, k, v, bounds, scaling), []


def _attend_backward(
    d_out: torch.Tensor,
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    held: list[torch.Tensor],
    bounds: SampleBounds,
    scaling: float,
) -> tuple[torch.Tensor, ...]:
    if held:
        return flash_backward(d_out, *heads, out, held, bounds, scaling)
    with torch.enable_grad():  # no flash attention here: run it again and let autograd find its gradients
        leaves = [tensor.detach().requires_grad_() for tensor in heads]
        again = padded_attention(*leaves, bounds, scaling)
    return torch.autograd.grad(again, leaves, d_out)
