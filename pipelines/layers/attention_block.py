"""The attention block of a decoder layer: its forward, and a backward written by hand.

T = tokens, h = hidden width, H / K = query / key-value heads, D = head size. xa = x A^T, where A
are the matrices A of all adapters that read x. The prefixes d and grad_ both mean the gradient of
the loss with respect to a tensor.

`forward` returns the block's output and the tensors that `backward` needs. `backward` returns dx
and the gradients of the block's adapters, in the order of `adapters`. The projections are
`AdaptedLinears`: their `forward` returns x W^T and xa, and `pending_updates(xa)` are the adapters'
updates s xa B^T that a later kernel must still add. `stack` puts the weights of q, k and v into one
buffer (`FrozenLinears`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch

from pipelines.layers.attention import (
    flash_backward,
    flash_forward,
    padded_attention,
    supports_flash,
)
from pipelines.layers.bounds import SampleBounds
from pipelines.layers.kernels import LowRank, kernels_for
from pipelines.layers.lora_linears import (
    AdaptedLinears,
    SavedTensors,
    compact_copy,
    input_and_norm,
)


class MicroBatchContext(NamedTuple):
    """Shared by all layers of a micro-batch: rotary tables cos, sin [T, D] and sample bounds."""

    cos: torch.Tensor
    sin: torch.Tensor
    bounds: SampleBounds


class AttentionBlock:
    """x + o(attention(rotary(qkv(rms_norm(x))))), with Qwen3's norms of q and k heads before
    rotary.
    """

    def __init__(self, module: Any, norm: Any, stack: bool) -> None:
        self._module, self._norm, self._head_norms = module, norm, head_norms(module)
        self._qkv = AdaptedLinears([module.q_proj, module.k_proj, module.v_proj], stack)
        self._o = AdaptedLinears([module.o_proj], stack)

    def adapters(self) -> list[torch.Tensor]:
        """A and B of every adapted linear of the block."""
        return [*self._qkv.adapters(), *self._o.adapters()]

    def forward(
        self, x: torch.Tensor, context: MicroBatchContext
    ) -> tuple[torch.Tensor, SavedTensors]:
        """x [T, h] -> [T, h]."""
        kernels = kernels_for(x)
        normed, rstd = kernels.rms_norm(x, self._norm.weight, self._norm.variance_epsilon)
        qkv, xa = self._qkv.forward(normed)
        # The kernel that rotates q and k reads them anyway, so it also adds the adapters' updates.
        rotated = self._finish_qkv(qkv, self._qkv.pending_updates(xa), context)
        out, attention_saved = self._attend(rotated, context)
        y, xa_o = self._o.forward(out)
        (update,) = self._o.pending_updates(xa_o)
        saved = (rstd, xa, qkv, out, compact_copy(xa_o), *attention_saved)
        return kernels.add(y, update, x), saved

    def backward(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        context: MicroBatchContext,
        saved: SavedTensors,
        wants_dx: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """dy [T, h] -> dx [T, h], None without `wants_dx`, and the adapters' gradients."""
        rstd, xa, qkv, out, xa_o, *attention_saved = cast(Any, saved)
        grad_xa_o = self._o.grad_xa(dy)
        d_out = self._o.input_gradient(dy, grad_xa_o)
        grads_o = self._o.adapter_gradients(dy, out, None, xa_o, grad_xa_o)
        # d_qkv is written next to grad_xa, so that dx of the projections is a single product.
        d_qkv, grad_xa = self._qkv.gradient_buffers(x)
        # Without head norms the forward rotated q and k in place, so qkv is already rotated. With
        # them the saved qkv has the updates but neither norms nor rotation.
        rotated = self._finish_qkv(qkv, [None, None, None], context) if self._head_norms else qkv
        self._attend_backward(d_out, rotated, out, attention_saved, context, d_qkv)
        del d_out, rotated  # frees their memory before the next large buffers
        for heads, d_heads, norm in zip(
            self._heads(qkv), self._heads(d_qkv), self._norms(), strict=True
        ):
            if norm is not None:
                kernels_for(x).head_norm_backward_(
                    d_heads.flatten(1), heads.flatten(1), heads.shape[1], norm
                )
        grad_xa = self._qkv.grad_xa(d_qkv, grad_xa)
        grads_qkv = self._qkv.adapter_gradients(
            d_qkv, *input_and_norm(self._norm, x, rstd), xa, grad_xa
        )
        if not wants_dx:
            return None, grads_qkv + grads_o
        d_normed = self._qkv.input_gradient(d_qkv, grad_xa)
        # dy is also the gradient of the skip connection; the norm's kernel adds it.
        dx = kernels_for(x).rms_norm_backward(d_normed, x, self._norm.weight, rstd, dy)
        return dx, grads_qkv + grads_o

    def _finish_qkv(
        self, qkv: torch.Tensor, updates: list[LowRank | None], context: MicroBatchContext
    ) -> torch.Tensor:
        """Add the adapters' updates, then norm and rotate q and k: qkv [T, (H + 2 K) D] -> same.

        `updates` are added to qkv in place. Without head norms q and k are also rotated in place,
        and the result is qkv itself. With head norms the result is a new buffer, because the
        backward of the norms needs q and k from before them.
        """
        # Same strides as qkv, whose columns can be part of a wider buffer.
        out = qkv.new_empty_strided(qkv.shape, qkv.stride()) if self._head_norms else None
        tables = (context.cos, context.sin)
        outputs = (
            (None, None, None) if out is None else (part.flatten(1) for part in self._heads(out))
        )
        parts = zip(
            self._heads(qkv), updates, (tables, tables, None), self._norms(), outputs, strict=True
        )
        for heads, update, rotary, norm, output in parts:
            kernels_for(qkv).add_rotate_(
                heads.flatten(1), heads.shape[1], update, rotary, norm, output
            )
        return qkv if out is None else out

    def _norms(self) -> list[tuple[torch.Tensor, float] | None]:
        """Weight and epsilon of the norms of q, k and v heads; v has none."""
        norms = [(norm.weight, norm.variance_epsilon) for norm in self._head_norms]
        return [*norms, None] if norms else [None, None, None]

    def _attend(
        self, qkv: torch.Tensor, context: MicroBatchContext
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Rotated qkv [T, (H + 2 K) D] -> [T, H D], and the tensors that its backward needs."""
        if not self._uses_short_kernels(qkv):
            q, k, v = self._heads(qkv)
            out, saved = _general_forward(q, k, v, context.bounds, self._module.scaling)
            return out.flatten(1), saved
        from pipelines.layers.short_attention import short_forward

        group = self._module.num_key_value_groups
        out, lse = short_forward(
            qkv, self._heads(qkv)[0].shape[1], group, context.bounds.blocks, self._module.scaling
        )
        return out, [lse]

    def _attend_backward(
        self,
        d_out: torch.Tensor,
        qkv: torch.Tensor,
        out: torch.Tensor,
        saved: list[torch.Tensor],
        context: MicroBatchContext,
        d_qkv: torch.Tensor,
    ) -> None:
        """Write the gradient of q, k and v before their rotation into d_qkv; `qkv` is rotated."""
        scaling, tables = self._module.scaling, (context.cos, context.sin)
        if self._uses_short_kernels(qkv):
            from pipelines.layers.short_attention import short_backward

            group = self._module.num_key_value_groups
            short_backward(
                d_out, qkv, out, saved[0], tables, group, context.bounds.blocks, scaling, d_qkv
            )
            return
        heads = self._heads(qkv)
        gradients = _general_backward(
            d_out.view_as(heads[0]), heads, out, saved, context.bounds, scaling
        )
        for target, gradient in zip(self._heads(d_qkv)[:2], gradients[:2], strict=True):
            kernels_for(qkv).rotate(gradient, target, *tables, inverse=True)
        self._heads(d_qkv)[2].copy_(gradients[2])

    def _uses_short_kernels(self, qkv: torch.Tensor) -> bool:
        """True where flash attention is supported and `short_attention` has the head size."""
        return supports_flash(qkv) and self._module.head_dim in (32, 64, 128)

    def _heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of q [T, H, D], k and v [T, K, D] in qkv [T, (H + 2 K) D]."""
        size = self._module.head_dim
        heads = qkv.shape[1] // size
        kv = heads // (self._module.num_key_value_groups + 2)
        return cast(Any, qkv.unflatten(1, (heads, size)).split([heads - 2 * kv, kv, kv], 1))


def head_norms(module: Any) -> tuple[Any, ...]:
    """An attention module's norms of query and key heads; empty if it has none."""
    return (module.q_norm, module.k_norm) if hasattr(module, "q_norm") else ()


def _general_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: SampleBounds, scaling: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Attention for every head size, dtype and device; without flash attention nothing is saved."""
    if supports_flash(q):
        return flash_forward(q, k, v, bounds, scaling)
    return padded_attention(q, k, v, bounds, scaling), []


def _general_backward(
    d_out: torch.Tensor,
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    saved: list[torch.Tensor],
    bounds: SampleBounds,
    scaling: float,
) -> tuple[torch.Tensor, ...]:
    if saved:
        return flash_backward(d_out, *heads, out.view_as(d_out), saved, bounds, scaling)
    # No flash attention here: run attention again and let autograd derive the gradients. Inside a
    # backward of autograd gradients are off by default.
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in heads]
        again = padded_attention(leaves[0], leaves[1], leaves[2], bounds, scaling)
    return torch.autograd.grad(again, leaves, d_out)
