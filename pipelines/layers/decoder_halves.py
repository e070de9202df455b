"""The two halves of a decoder layer, each a forward that says what its backward needs, and that backward.

T = tokens, h = hidden, i = intermediate width, H / K = query / key-value heads, D = head size. A half's `forward` returns
its output and what it would keep; the MLP's, without `whole`, stops before its last product, as recomputing wants.
`backward` gives dx and the gradients of its adapters, in the order of `adapters`. The MLP's overwrites gate_up and low.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch

from pipelines.layers.attention import flash_backward, flash_forward, flash_runs, padded_attention
from pipelines.layers.bounds import SampleBounds
from pipelines.layers.kernels import LowRank, kernels_for
from pipelines.layers.lora_linears import AdaptedLinears

Kept = tuple[torch.Tensor | None, ...]


class Where(NamedTuple):
    """What all layers of a micro-batch share: rotary tables cos and sin [T, D], and the samples' bounds."""

    cos: torch.Tensor
    sin: torch.Tensor
    bounds: SampleBounds


class AttentionHalf:
    """x + o(attention(rotary(qkv(rms_norm(x))))), with Qwen3's norms of every query and key before rotary."""

    def __init__(self, module: Any, norm: Any, stack: bool) -> None:
        self._module, self._norm, self._head_norms = module, norm, head_norms(module)
        self._qkv = AdaptedLinears([module.q_proj, module.k_proj, module.v_proj], stack)
        self._o = AdaptedLinears([module.o_proj], stack)

    def adapters(self) -> list[torch.Tensor]:
        return [*self._qkv.adapters(), *self._o.adapters()]

    def forward(self, x: torch.Tensor, where: Where) -> tuple[torch.Tensor, Kept]:
        """x [T, h] -> [T, h]."""
        kernels = kernels_for(x)
        normed, rstd = kernels.rms_norm(x, self._norm.weight, self._norm.variance_epsilon)
        qkv, low = self._qkv.forward(normed)
        out, held = self._attend(self._turned(qkv, self._qkv.added(low), where), where)
        y, low_o = self._o.forward(out)
        return kernels.add(y, self._o.added(low_o)[0], x), (
            rstd,
            low,
            qkv,
            out,
            _alone(low_o),
            *held,
        )

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, where: Where, kept: Kept, wants_dx: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        rstd, low, qkv, out, low_o, *held = cast(Any, kept)
        d_low_o = self._o.d_low(dy)
        d_out = self._o.dx(dy, d_low_o)
        found_o = self._o.gradients(dy, out, None, low_o, d_low_o)
        d_qkv, d_low = self._qkv.gradient_room(x)
        turned = self._turned(qkv, [None, None, None], where) if self._head_norms else qkv
        self._attend_backward(d_out, turned, out, held, where, d_qkv)
        del d_out, turned
        for heads, d_heads, norm in zip(
            self._heads(qkv), self._heads(d_qkv), self._norms(), strict=True
        ):
            if norm is not None:
                kernels_for(x).head_norm_backward_(
                    d_heads.flatten(1), heads.flatten(1), heads.shape[1], norm
                )
        d_low = self._qkv.d_low(d_qkv, d_low)
        found = self._qkv.gradients(d_qkv, *_normed(self._norm, x, rstd), low, d_low) + found_o
        if not wants_dx:
            return None, found
        return kernels_for(x).rms_norm_backward(
            self._qkv.dx(d_qkv, d_low), x, self._norm.weight, rstd, dy
        ), found

    def _turned(self, qkv: torch.Tensor, added: list[LowRank | None], where: Where) -> torch.Tensor:
        """qkv [T, (H + 2 K) D] with q and k ready for attention. qkv gets in place what adapters add, and is the result
        itself unless heads are normed: then it stays as it was before, for the norms' backward.
        """
        out = qkv.new_empty_strided(qkv.shape, qkv.stride()) if self._head_norms else None
        tables = (where.cos, where.sin)
        intos = (
            (None, None, None) if out is None else (part.flatten(1) for part in self._heads(out))
        )
        parts = zip(
            self._heads(qkv), added, (tables, tables, None), self._norms(), intos, strict=True
        )
        for heads, part, turn, norm, into in parts:
            kernels_for(qkv).add_rotate_(heads.flatten(1), heads.shape[1], part, turn, norm, into)
        return qkv if out is None else out

    def _norms(self) -> list[tuple[torch.Tensor, float] | None]:
        """Of q, k and v."""
        found = [(norm.weight, norm.variance_epsilon) for norm in self._head_norms]
        return [*found, None] if found else [None, None, None]

    def _attend(self, qkv: torch.Tensor, where: Where) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """qkv [T, (H + 2 K) D], turned -> [T, H D], and what the backward needs besides."""
        if not self._short(qkv):
            q, k, v = self._heads(qkv)
            out, held = _general(q, k, v, where.bounds, self._module.scaling)
            return out.flatten(1), held
        from pipelines.layers.short_attention import short_forward

        group = self._module.num_key_value_groups
        out, lse = short_forward(
            qkv, self._heads(qkv)[0].shape[1], group, where.bounds.blocks, self._module.scaling
        )
        return out, [lse]

    def _attend_backward(
        self,
        d_out: torch.Tensor,
        qkv: torch.Tensor,
        out: torch.Tensor,
        held: list[torch.Tensor],
        where: Where,
        d_qkv: torch.Tensor,
    ) -> None:
        """Into d_qkv the gradient of qkv as it was before q and k were turned."""
        scaling, tables = self._module.scaling, (where.cos, where.sin)
        if self._short(qkv):
            from pipelines.layers.short_attention import short_backward

            group = self._module.num_key_value_groups
            short_backward(
                d_out, qkv, out, held[0], tables, group, where.bounds.blocks, scaling, d_qkv
            )
            return
        heads = self._heads(qkv)
        gradients = _general_backward(
            d_out.view_as(heads[0]), heads, out, held, where.bounds, scaling
        )
        for into, gradient in zip(self._heads(d_qkv)[:2], gradients[:2], strict=True):
            kernels_for(qkv).rotate(gradient, into, *tables, inverse=True)
        self._heads(d_qkv)[2].copy_(gradients[2])

    def _short(self, qkv: torch.Tensor) -> bool:
        """Whether the kernels for short samples run: where flash attention does, for the head sizes that they know."""
        return flash_runs(qkv) and self._module.head_dim in (32, 64, 128)

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
        return kernels.add(y, self._down.added(low_down)[0], x), (
            rstd,
            low,
            gate_up,
            _alone(low_down),
        )

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, kept: Kept
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        rstd, low, gate_up, low_down = cast(Any, kept)
        kernels = kernels_for(x)
        d_low_down = self._down.d_low(dy)
        act, lacking = self._down.dx_without(
            dy, d_low_down
        )  # the activation's gradient, until the next line
        d_low, low = low, _alone(low)  # its place beside gate_up becomes its gradient's
        added = self._gate_up.added(low)
        kernels.swiglu_backward_(act, gate_up, *added, lacking, d_low if any(added) else None)
        found_down = self._down.gradients(dy, act, None, low_down, d_low_down)
        del act
        if not any(added):
            d_low = self._gate_up.d_low(gate_up, d_low)
        found = (
            self._gate_up.gradients(gate_up, *_normed(self._norm, x, rstd), low, d_low) + found_down
        )
        d_normed = self._gate_up.dx(gate_up, d_low)
        return kernels.rms_norm_backward(d_normed, x, self._norm.weight, rstd, dy), found


def head_norms(module: Any) -> tuple[Any, ...]:
    """An attention module's norms of queries' and keys' heads; empty where it has none."""
    return (module.q_norm, module.k_norm) if hasattr(module, "q_norm") else ()


def _general(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: SampleBounds, scaling: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    if flash_runs(q):
        return flash_forward(q, k, v, bounds, scaling)
    return padded_attention(q, k, v, bounds, scaling), []


def _general_backward(
    d_out: torch.Tensor,
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    held: list[torch.Tensor],
    bounds: SampleBounds,
    scaling: float,
) -> tuple[torch.Tensor, ...]:
    if held:
        return flash_backward(d_out, *heads, out.view_as(d_out), held, bounds, scaling)
    with (
        torch.enable_grad()
    ):  # no flash attention here: run it again and let autograd find its gradients
        leaves = [tensor.detach().requires_grad_() for tensor in heads]
        again = padded_attention(leaves[0], leaves[1], leaves[2], bounds, scaling)
    return torch.autograd.grad(again, leaves, d_out)


def _normed(
    norm: Any, x: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """The linears' input as `AdaptedLinears.gradients` takes it. In fp16, where a gradient over rms may be too small a
    number, the norm is made again.
    """
    if x.dtype == torch.float16:
        return kernels_for(x).rms_norm(x, norm.weight, norm.variance_epsilon)[0], None
    return x, (norm.weight, rstd)


def _alone(low: torch.Tensor | None) -> torch.Tensor | None:
    """A copy, which keeps no wide buffer alive."""
    return None if low is None else low.clone(memory_format=torch.contiguous_format)
