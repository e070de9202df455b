"""Adapted linears that share an input: y_i = x W_i^T + s_i (x A_i^T) B_i^T, and its gradients by hand.

T = tokens, K = input width, N = the outputs' widths together, R = the adapters' ranks together. One product x A^T serves
all of them, the adapters' part is added into the base's output, and the frozen weights get no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.model.frozen import FrozenLinears


class AdaptedLinears:
    """Modules of one input, each a frozen linear or PEFT's LoRA around one. Reads the active adapter at every call."""

    def __init__(self, modules: Sequence[Any], stack: bool) -> None:
        self._modules = list(modules)
        bases = [module.get_base_layer() if _is_lora(module) else module for module in modules]
        self.frozen = FrozenLinears(bases, stack)
        ends = torch.tensor(self.frozen.widths).cumsum(0).tolist()
        self._spans = list(zip([0, *ends[:-1]], ends, strict=True))

    def adapters(self) -> list[torch.Tensor]:
        """A [r, K], B [n, r] of every adapted module, in turn: what trains."""
        return [side[name].weight for module, name, _ in self._active() for side in (module.lora_A, module.lora_B)]

    def _active(self) -> list[tuple[Any, str, tuple[int, int]]]:
        named = [(module, module.active_adapters, span) for module, span in zip(self._modules, self._spans, strict=True) if _is_lora(module)]  # noqa: E501
        assert all(len(names) == 1 for _, names, _ in named), "one adapter trains"
        return [(module, names[0], span) for module, names, span in named if names[0] in module.lora_A]

    def _parts(self) -> list[tuple[slice, slice, float, torch.Tensor]]:
        """Each adapter's outputs, its ranks, its scale and B."""
        parts, at = [], 0
        for module, name, (start, stop) in self._active():
            b = module.lora_B[name].weight
            parts.append((slice(start, stop), slice(at, at + b.shape[1]), module.scaling[name], b))
            at += b.shape[1]
        return parts

    def _a(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.cat([module.lora_A[name].weight for module, name, _ in self._active()]).to(dtype)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [T, K] -> y [T, N] and x A^T [T, R], which the backward needs; None without adapters."""
        y, parts = self.frozen.forward(x), self._parts()
        if not parts:
            return y, None
        low = x @ self._a(x.dtype).T
        for outputs, ranks, scale, b in parts:
            y[:, outputs].addmm_(low[:, ranks], b.T.to(x.dtype), alpha=scale)
        return y, low

    def backward(self, dy: torch.Tensor, wants_dx: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """dy [T, N] -> dx [T, K] (None when not wanted) and d(x A^T) [T, R]."""
        parts = self._parts()
        d_low = None
        if parts:
            d_low = torch.cat([dy[:, outputs] @ (b * scale).to(dy.dtype) for outputs, _, scale, b in parts], 1)
        if not wants_dx:
            return None, d_low
        dx = self.frozen.backward(dy)
        return (dx if d_low is None else dx.addmm_(d_low, self._a(dy.dtype))), d_low

    def gradients(
        self, dy: torch.Tensor, x: torch.Tensor, low: torch.Tensor | None, d_low: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """dA, dB of every adapter, in the order of `adapters`."""
        if low is None or d_low is None:
            return []
        d_a, found = d_low.T @ x, []
        for outputs, ranks, scale, b in self._parts():
            found += [d_a[ranks].to(b.dtype), (dy[:, outputs].T @ low[:, ranks]).mul_(scale).to(b.dtype)]
        return found


def _is_lora(module: Any) -> bool:
    return hasattr(module, "lora_A")
