"""Adapted linears that share an input: y_i = x W_i^T + s_i (x A_i^T) B_i^T, and its gradients by hand.

T = tokens, K = input width, N = the outputs' widths together, R = the adapters' ranks together, filled up with zeros to a
multiple of 16 so that rows stay aligned. One product x A^T serves all of them ("low", [T, R]), and the frozen weights get
no gradient. What an adapter adds to an output is handed to the kernel that reads that output next, where it costs no
pass over memory of its own. x A^T, and d_low A where d_low lies beside dy, are part of the frozen weights' own products
if these can be (`model.frozen`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.layers.frozen_linears import FrozenLinears
from pipelines.layers.kernels import LowRank

_MAX_INLINE = 64  # ranks up to which a kernel's tile multiplies them by the way
_ALIGNED = 16


class AdaptedLinears:
    """Modules of one input, each a frozen linear or PEFT's LoRA around one. Reads the active adapter at every call."""

    def __init__(self, modules: Sequence[Any], stack: bool) -> None:
        self._modules = list(modules)
        bases = [module.get_base_layer() if _is_lora(module) else module for module in modules]
        room = sum(b.shape[1] for _, _, _, b in self._parts())
        self.frozen = FrozenLinears(bases, stack, room + -room % _ALIGNED)
        ends = torch.tensor(self.frozen.widths).cumsum(0).tolist()
        self._spans = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def adapters(self) -> list[torch.Tensor]:
        """A [r, K], B [n, r] of every adapted module, in turn: what trains."""
        return [
            side[name].weight
            for module, name, _ in self._active()
            for side in (module.lora_A, module.lora_B)
        ]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [T, K] -> x W^T [T, N], and low, None without adapters; what `added` names is yet to be added."""
        y, low = self.frozen.forward(x, self._a(x.dtype))
        if low is not None and not self._inline:
            for index, ranks, scale, b in self._parts():
                y[:, self._spans[index]].addmm_(low[:, ranks], b.T.to(y.dtype), alpha=scale)
        return y, low

    def low(self, x: torch.Tensor) -> torch.Tensor | None:
        """x A^T [T, R] alone."""
        a = self._a(x.dtype)
        return None if a is None else x @ a.T

    def added(self, low: torch.Tensor | None) -> list[LowRank | None]:
        """What each module's output lacks after `forward`."""
        found: list[LowRank | None] = [None] * len(self._modules)
        if low is None or not self._inline:
            return found
        for index, ranks, scale, b in self._parts():
            found[index] = LowRank(low[:, ranks], b.to(low.dtype), scale)
        return found

    def gradient_room(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Where dy [T, N] and d_low [T, R] are best written."""
        a = self._a(x.dtype)
        return (
            (x.new_empty(len(x), self.frozen.width), None)
            if a is None
            else self.frozen.gradient_room(x, a)
        )

    def d_low(self, dy: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor | None:
        """dy [T, N] -> the gradient of low [T, R], written `into` that if given."""
        parts = self._parts()
        if not parts:
            return None
        ranks = sum(b.shape[1] for _, _, _, b in parts)
        out = dy.new_empty(len(dy), ranks + -ranks % _ALIGNED) if into is None else into
        out[:, ranks:] = 0
        for index, of, scale, b in parts:
            torch.addmm(
                out[:, of],
                dy[:, self._spans[index]],
                b.to(dy.dtype),
                beta=0,
                alpha=scale,
                out=out[:, of],
            )
        return out

    def dx(self, dy: torch.Tensor, d_low: torch.Tensor | None) -> torch.Tensor:
        """dy [T, N] -> dx [T, K], the adapters' share with it."""
        return self.frozen.backward(dy, d_low, self._a(dy.dtype))

    def dx_without(
        self, dy: torch.Tensor, d_low: torch.Tensor | None
    ) -> tuple[torch.Tensor, LowRank | None]:
        """dy [T, N] -> dx [T, K] and what it lacks."""
        a = self._a(dy.dtype)
        if d_low is None or a is None or not self._inline:
            return self.frozen.backward(dy, d_low, a), None
        return self.frozen.backward(dy), LowRank(d_low, a.T, 1.0)

    def gradients(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        norm: tuple[torch.Tensor, torch.Tensor] | None,
        low: torch.Tensor | None,
        d_low: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """dA, dB of every adapter, in the order of `adapters`. With `norm`, an RMS norm's weight [K] and 1 / rms [T], the
        linears' input is x normed, which then need not be made again: dA = (d_low / rms)^T x * weight.
        """
        if low is None or d_low is None:
            return []
        if norm is None:
            d_a = d_low.T @ x
        else:
            d_a = ((d_low * norm[1][:, None]).to(x.dtype).T @ x) * norm[0]
        found = []
        for index, ranks, scale, b in self._parts():
            left, right = dy[:, self._spans[index]].T, low[:, ranks]
            d_b = torch.addmm(left.new_empty(b.shape), left, right, beta=0, alpha=scale)
            found += [d_a[ranks].to(b.dtype), d_b.to(b.dtype)]
        return found

    @property
    def _inline(self) -> bool:
        return all(b.shape[1] <= _MAX_INLINE for _, _, _, b in self._parts())

    def _active(self) -> list[tuple[Any, str, int]]:
        found = []
        for index, module in enumerate(self._modules):
            names = module.active_adapters if _is_lora(module) else []
            assert len(names) <= 1, "one adapter trains"
            found += [(module, name, index) for name in names if name in module.lora_A]
        return found

    def _parts(self) -> list[tuple[int, slice, float, torch.Tensor]]:
        """Each adapter's module, its ranks in low, its scale and B."""
        parts, at = [], 0
        for module, name, index in self._active():
            b = module.lora_B[name].weight
            parts.append((index, slice(at, at + b.shape[1]), module.scaling[name], b))
            at += b.shape[1]
        return parts

    def _a(self, dtype: torch.dtype) -> torch.Tensor | None:
        """The A of all adapters below each other and zeros [R, K]; None without adapters."""
        rows = [module.lora_A[name].weight.to(dtype) for module, name, _ in self._active()]
        if not rows:
            return None
        lacking = -sum(map(len, rows)) % _ALIGNED
        return torch.cat([*rows, rows[0].new_zeros(lacking, rows[0].shape[1])] if lacking else rows)


def _is_lora(module: Any) -> bool:
    return hasattr(module, "lora_A")
