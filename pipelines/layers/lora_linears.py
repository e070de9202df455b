"""LoRA linears with a common input: y_i = x W_i^T + s_i (x A_i^T) B_i^T, with gradients by hand.

T = tokens, K = input width, N = the sum of the output widths, R = the sum of the adapters' ranks,
padded with zeros to a multiple of 16 so that rows stay aligned. One product x A^T ("xa", [T, R])
serves all of the linears, and the frozen weights get no gradient.

Two things make adapters nearly free. The update s xa B^T of an output is not added here but handed
to the kernel that reads the output next, which saves a pass over memory. And x A^T, like grad_xa A
in the backward, becomes part of the frozen weights' own product where `frozen_linears` can do that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.layers.frozen_linears import FrozenLinears
from pipelines.layers.kernels import LowRank, kernels_for

SavedTensors = tuple[torch.Tensor | None, ...]
"""Tensors that a block's forward saves for its backward; xa is None without adapters."""

_MAX_PENDING_RANK = 64
"""Up to this rank the next kernel multiplies its tile by B; higher ranks get their own product."""

_RANK_MULTIPLE = 16


class AdaptedLinears:
    """Modules with a common input, each a frozen linear or PEFT's LoRA around one.

    The active adapter is read in every call. `stack` as in `FrozenLinears`.
    """

    def __init__(self, modules: Sequence[Any], stack: bool) -> None:
        self._modules = list(modules)
        # The buffers of the frozen weights are laid out for the ranks of the adapter attached now.
        bases = [module.get_base_layer() if _is_lora(module) else module for module in modules]
        num_ranks = sum(b.shape[1] for _, _, _, b in self._parts())
        self.frozen = FrozenLinears(bases, stack, num_ranks + -num_ranks % _RANK_MULTIPLE)
        ends = torch.tensor(self.frozen.widths).cumsum(0).tolist()
        self._columns = [
            slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]

    def adapters(self) -> list[torch.Tensor]:
        """The trainable A [r, K] and B [n, r] of every adapted module, in turn."""
        return [
            side[name].weight
            for module, name, _ in self._active()
            for side in (module.lora_A, module.lora_B)
        ]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [T, K] -> x W^T [T, N], to which `pending_updates(xa)` must be added, and xa [T, R].

        xa is None without adapters. It can be a view of a buffer that also contains x W^T.
        """
        y, xa = self.frozen.forward(x, self._stacked_a(x.dtype))
        if xa is not None and not self._leaves_updates:
            # In place into y's columns; addmm_ fuses the product with the addition.
            for index, ranks, scale, b in self._parts():
                y[:, self._columns[index]].addmm_(xa[:, ranks], b.T.to(y.dtype), alpha=scale)
        return y, xa

    def compute_xa(self, x: torch.Tensor) -> torch.Tensor | None:
        """x A^T [T, R] alone."""
        a = self._stacked_a(x.dtype)
        return None if a is None else x @ a.T

    def pending_updates(self, xa: torch.Tensor | None) -> list[LowRank | None]:
        """For each module the adapter's update that the output of `forward` lacks."""
        updates: list[LowRank | None] = [None] * len(self._modules)
        if xa is None or not self._leaves_updates:
            return updates
        for index, ranks, scale, b in self._parts():
            updates[index] = LowRank(xa[:, ranks], b.to(xa.dtype), scale)
        return updates

    def gradient_buffers(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Uninitialized dy [T, N] and grad_xa [T, R], laid out for a fast `input_gradient`."""
        a = self._stacked_a(x.dtype)
        return (
            (x.new_empty(len(x), self.frozen.width), None)
            if a is None
            else self.frozen.gradient_buffers(x, a)
        )

    def grad_xa(self, dy: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor | None:
        """dy [T, N] -> the gradient of xa [T, R], written into `out` if given; None without
        adapters.
        """
        parts = self._parts()
        if not parts:
            return None
        num_ranks = sum(b.shape[1] for _, _, _, b in parts)
        if out is None:
            out = dy.new_empty(len(dy), num_ranks + -num_ranks % _RANK_MULTIPLE)
        out[:, num_ranks:] = 0  # the padding is multiplied by A's rows of zeros, and 0 * NaN is NaN
        for index, ranks, scale, b in parts:
            # beta=0 ignores the input, so that uninitialized memory cannot bring in a NaN.
            torch.addmm(
                out[:, ranks],
                dy[:, self._columns[index]],
                b.to(dy.dtype),
                beta=0,
                alpha=scale,
                out=out[:, ranks],
            )
        return out

    def input_gradient(self, dy: torch.Tensor, grad_xa: torch.Tensor | None) -> torch.Tensor:
        """dy [T, N] -> dx [T, K], including the adapters' part grad_xa A."""
        return self.frozen.backward(dy, grad_xa, self._stacked_a(dy.dtype))

    def partial_input_gradient(
        self, dy: torch.Tensor, grad_xa: torch.Tensor | None
    ) -> tuple[torch.Tensor, LowRank | None]:
        """dy [T, N] -> dx [T, K] and the update grad_xa A that it lacks, for the next kernel to
        add.
        """
        a = self._stacked_a(dy.dtype)
        if grad_xa is None or a is None or not self._leaves_updates:
            return self.frozen.backward(dy, grad_xa, a), None
        return self.frozen.backward(dy), LowRank(grad_xa, a.T, 1.0)

    def adapter_gradients(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        norm: tuple[torch.Tensor, torch.Tensor] | None,
        xa: torch.Tensor | None,
        grad_xa: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """dA [r, K] and dB [n, r] of every adapter, in the order of `adapters`.

        Without `norm` x is the linears' input. With it, x is the input of an RMS norm with this
        weight [K] and 1 / rms [T] (`input_and_norm`), whose output need not be computed again:
        dA = grad_xa^T (x / rms * weight) = (grad_xa / rms)^T x * weight.
        """
        if xa is None or grad_xa is None:
            return []
        if norm is None:
            d_a = grad_xa.T @ x
        else:
            # Scaling [T, R] by 1 / rms is cheaper than scaling [T, K], as R is small.
            d_a = ((grad_xa * norm[1][:, None]).to(x.dtype).T @ x) * norm[0]
        gradients = []
        for index, ranks, scale, b in self._parts():
            left, right = dy[:, self._columns[index]].T, xa[:, ranks]
            d_b = torch.addmm(left.new_empty(b.shape), left, right, beta=0, alpha=scale)
            gradients += [d_a[ranks].to(b.dtype), d_b.to(b.dtype)]
        return gradients

    @property
    def _leaves_updates(self) -> bool:
        """True if the next kernel adds the updates; one high rank decides for all modules."""
        return all(b.shape[1] <= _MAX_PENDING_RANK for _, _, _, b in self._parts())

    def _active(self) -> list[tuple[Any, str, int]]:
        """Module, adapter name and index of every module with an active adapter."""
        active = []
        for index, module in enumerate(self._modules):
            names = module.active_adapters if _is_lora(module) else []
            assert len(names) <= 1, "the fused layers train a single adapter"
            active += [(module, name, index) for name in names if name in module.lora_A]
        return active

    def _parts(self) -> list[tuple[int, slice, float, torch.Tensor]]:
        """For every adapter: its module's index, its ranks (columns of xa), its scale and its B."""
        parts, start = [], 0
        for module, name, index in self._active():
            b = module.lora_B[name].weight
            ranks = slice(start, start + b.shape[1])
            parts.append((index, ranks, module.scaling[name], b))
            start = ranks.stop
        return parts

    def _stacked_a(self, dtype: torch.dtype) -> torch.Tensor | None:
        """All adapters' A below each other, then rows of zeros: [R, K]; None without adapters."""
        rows = [module.lora_A[name].weight.to(dtype) for module, name, _ in self._active()]
        if not rows:
            return None
        padding = -sum(map(len, rows)) % _RANK_MULTIPLE
        return torch.cat([*rows, rows[0].new_zeros(padding, rows[0].shape[1])] if padding else rows)


def input_and_norm(
    norm: Any, x: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """The arguments `x` and `norm` of `adapter_gradients` for linears after an RMS norm of x [T,
    K].

    In fp16 grad_xa / rms can underflow where rms is large, so the norm is computed again instead.
    """
    if x.dtype == torch.float16:
        return kernels_for(x).rms_norm(x, norm.weight, norm.variance_epsilon)[0], None
    return x, (norm.weight, rstd)


def compact_copy(xa: torch.Tensor | None) -> torch.Tensor | None:
    """A copy of xa [T, R] in memory of its own: a view would keep the wide buffer of y alive."""
    return None if xa is None else xa.clone(memory_format=torch.contiguous_format)


def _is_lora(module: Any) -> bool:
    return hasattr(module, "lora_A")
