"""Adapted linears that share an input: y_i = x W_i^T + s_i (x A_i^T) B_i^T, and its gradients by hand.

T = tokens, K = input width, N = the outputs' widths together, R = the adapters' ranks together. One product x A^T serves
all of them ("low", [T, R]), and the frozen weights get no gradient. What an adapter adds to an output is handed to the
kernel that reads that output next, where it costs no pass over memory of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.model.frozen import FrozenLinears
from pipelines.model.kernels import LowRank

_MAX_INLINE = 64  # ranks up to which a kernel's tile multiplies them by the way


class AdaptedLinears:
    """Modules of one input, each a frozen linear or PEFT's LoRA around one. Reads the active adapter at every call."""

    def __init__(self, modules: Sequence[Any], stack: bool) -> None:
        self._modules = list(modules)
        bases = [module.get_base_layer() if _is_lora(module) else module for module in modules]
        self.frozen = FrozenLinears(bases, stack)
        ends = torch.tensor(self.frozen.widths).cumsum(0).tolist()
        self._spans = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def adapters(self) -> list[torch.Tensor]:
        """A [r, K], B [n, r] of every adapted module, in turn: what trains."""
        return [side[name].weight for module, name, _ in self._active() for side in (module.lora_A, module.lora_B)]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [T, K] -> x W^T [T, N], and low; what `added` names is yet to be added."""
        y = self.frozen.forward(x)
        low = self.low(x)
        if low is not None and not self._inline:
            self._add_(y, low)
        return y, low

    def low(self, x: torch.Tensor) -> torch.Tensor | None:
        """x A^T [T, R]; None without adapters."""
        return x @ self._a(x.dtype).T if self._active() else None

    def added(self, low: torch.Tensor | None) -> list[LowRank | None]:
        """What each module's output lacks after `forward`."""
        found: list[LowRank | None] = [None] * len(self._modules)
        if low is None or not self._inline:
            return found
        for index, ranks, scale, b in self._parts():
            found[index] = LowRank(low[:, ranks], b.to(low.dtype), scale)
        return found

    def add_(self, y: torch.Tensor, low: torch.Tensor | None) -> None:
        """Add what `forward` left out to y [T, N] in place."""
        if low is not None and self._inline:
            self._add_(y, low)

    def d_low(self, dy: torch.Tensor) -> torch.Tensor | None:
        """dy [T, N] -> the gradient of low [T, R]."""
        parts = self._parts()
        if not parts:
            return None
        return torch.cat([dy[:, self._spans[i]] @ (b * scale).to(dy.dtype) for i, _, scale, b in parts], 1)

    def dx(self, dy: torch.Tensor, d_low: torch.Tensor | None) -> torch.Tensor:
        """dy [T, N] -> dx [T, K], the adapters' share with it."""
        dx, lacking = self.dx_without(dy, d_low)
        return dx if lacking is None else dx.addmm_(lacking.low, lacking.weight.T)

    def dx_without(self, dy: torch.Tensor, d_low: torch.Tensor | None) -> tuple[torch.Tensor, LowRank | None]:
        """dy [T, N] -> dx [T, K] and what it lacks."""
        dx = self.frozen.backward(dy)
        if d_low is None:
            return dx, None
        a = self._a(dy.dtype)
        if not self._inline:
            return dx.addmm_(d_low, a), None
        return dx, LowRank(d_low, a.T, 1.0)

    def gradients(
        self, dy: torch.Tensor, x: torch.Tensor, low: torch.Tensor | None, d_low: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """dA, dB of every adapter, in the order of `adapters`."""
        if low is None or d_low is None:
            return []
        d_a, found = d_low.T @ x, []
        for index, ranks, scale, b in self._parts():
            d_b = (dy[:, self._spans[index]].T @ low[:, ranks]).mul_(scale)
            found += [d_a[ranks].to(b.dtype), d_b.to(b.dtype)]
        return found

    @property
    def _inline(self) -> bool:
        return all(b.shape[1] <= _MAX_INLINE for _, _, _, b in self._parts())

    def _add_(self, y: torch.Tensor, low: torch.Tensor) -> None:
        for index, ranks, scale, b in self._parts():
            y[:, self._spans[index]].addmm_(low[:, ranks], b.T.to(y.dtype), alpha=scale)

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

    def _a(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.cat([module.lora_A[name].weight for module, name, _ in self._active()]).to(dtype)


def _is_lora(module: Any) -> bool:
    return hasattr(module, "lora_A")
