"""The MLP block of a decoder layer: its forward, and a backward written by hand.

T = tokens, h = hidden width, i = intermediate width. The conventions are those of
`attention_block`.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from pipelines.layers.kernels import kernels_for
from pipelines.layers.lora_linears import (
    AdaptedLinears,
    SavedTensors,
    compact_copy,
    input_and_norm,
)


class MlpBlock:
    """x + down(silu(gate(n)) * up(n)) with n = rms_norm(x)."""

    def __init__(self, module: Any, norm: Any, stack: bool) -> None:
        self._norm = norm
        self._gate_up = AdaptedLinears([module.gate_proj, module.up_proj], stack)
        self._down = AdaptedLinears([module.down_proj], stack)

    def adapters(self) -> list[torch.Tensor]:
        """A and B of every adapted linear of the block."""
        return [*self._gate_up.adapters(), *self._down.adapters()]

    def forward(
        self, x: torch.Tensor, recompute: bool = False
    ) -> tuple[torch.Tensor | None, SavedTensors]:
        """x [T, h] -> [T, h] and the tensors that `backward` needs.

        With `recompute` only the latter: it stops before the down projection, whose output no
        backward needs.
        """
        kernels = kernels_for(x)
        normed, rstd = kernels.rms_norm(x, self._norm.weight, self._norm.variance_epsilon)
        gate_up, xa = self._gate_up.forward(normed)
        act = kernels.swiglu(gate_up, *self._gate_up.pending_updates(xa))
        if recompute:
            return None, (rstd, xa, gate_up, self._down.compute_xa(act))
        y, xa_down = self._down.forward(act)
        (update,) = self._down.pending_updates(xa_down)
        return kernels.add(y, update, x), (rstd, xa, gate_up, compact_copy(xa_down))

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, saved: SavedTensors
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """dy [T, h] -> dx [T, h] and the adapters' gradients. Overwrites the saved gate_up, xa."""
        rstd, xa, gate_up, xa_down = cast(Any, saved)
        kernels = kernels_for(x)
        grad_xa_down = self._down.grad_xa(dy)
        # The activation was not saved. `act` first has its gradient; the kernel below turns it into
        # the activation and gate_up into gate_up's gradient, so no third [T, i] buffer is needed.
        act, d_act_update = self._down.partial_input_gradient(dy, grad_xa_down)
        # xa lies next to gate_up in one buffer. Its place is reused for grad_xa, so that gate_up's
        # gradient and grad_xa also share one buffer and `input_gradient` is a single product.
        grad_xa, xa = xa, compact_copy(xa)
        updates = self._gate_up.pending_updates(xa)
        kernels.swiglu_backward_(
            act, gate_up, *updates, d_act_update, grad_xa if any(updates) else None
        )
        grads_down = self._down.adapter_gradients(dy, act, None, xa_down, grad_xa_down)
        del act  # frees its memory before the next large buffers
        if not any(updates):
            grad_xa = self._gate_up.grad_xa(gate_up, grad_xa)
        grads_gate_up = self._gate_up.adapter_gradients(
            gate_up, *input_and_norm(self._norm, x, rstd), xa, grad_xa
        )
        d_normed = self._gate_up.input_gradient(gate_up, grad_xa)
        dx = kernels.rms_norm_backward(d_normed, x, self._norm.weight, rstd, dy)
        return dx, grads_gate_up + grads_down
