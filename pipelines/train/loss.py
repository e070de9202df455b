"""The loss of a micro-batch: the weighted sum of next-token losses at its label positions.
 L = sum_t w_t * -log p(x_t | x_<t), not divided. The training loop divides by the sum of w over all
micro-batches and ranks of the step, which is exact under packing, accumulation and any number of
ranks. Shapes: T tokens, M label positions, h hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.nn import functional

from pipelines.layers.kernels import kernels_for
from pipelines.train.batch import MicroBatch

_CHUNK_BYTES = 2**28  # of logits that exist at a time
_TILE_ROWS = 256  # a chunk's rows are a multiple of the matmul's tile, if it has that many
_MIN_CHUNKS = 8  # so that a small micro-batch's logits add little to its activations


class PackedLoss(torch.nn.Module):
    """A causal model, PEFT-wrapped or plain, whose forward returns a micro-batch's summed loss.

    The loss is an fp32 scalar. The head runs at label positions only, because most positions of an
    instruction dataset are masked.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch, per_token: bool = False) -> torch.Tensor:
        """The summed loss or, with `per_token`, the losses [M] of the label positions, unweighted.

        The losses of a frozen head have no gradient.
        """
        causal = (
            self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        )
        hidden = causal.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            bounds=batch.bounds,
        ).last_hidden_state.squeeze(0)
        head = causal.lm_head
        if type(head) is not torch.nn.Linear or head.weight.requires_grad or head.bias is not None:
            losses = functional.cross_entropy(
                head(hidden[batch.label_positions]).float(), batch.targets, reduction="none"
            )
            return losses if per_token else cast(torch.Tensor, losses @ batch.weights)
        # The head is called as a module with another forward, because ZeRO-3 gathers a module's
        # weights in the hooks of its call. Reading `head.weight` elsewhere would see an empty
        # shard.
        compute = _frozen_head_losses if per_token else _FrozenHeadLoss.apply
        cast(Any, head).forward = lambda states: compute(states, head.weight, batch)
        try:
            return cast(torch.Tensor, head(hidden))
        finally:
            del head.forward


class _FrozenHeadLoss(torch.autograd.Function):
    """Loss of hidden [T, h] through a frozen head [V, h], with only a chunk of logits in memory.

    The loss is a sum, so the forward knows its gradient up to the scalar factor that the backward
    receives. The logits of a chunk become their own gradient in place (as in Liger's fused linear
    cross entropy, Hsu et al. 2024, arXiv:2410.10989, without the product for the head's gradient).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, batch: MicroBatch
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        # This gradient exists before fp16's loss scale is applied in the backward; without a scale
        # of its own, small values would round to zero. Powers of two are exact.
        boost = 1024.0 if hidden.dtype == torch.float16 else 1.0
        for index, weights, losses, logits in _chunks(hidden, weight, batch, boost):
            total += losses @ weights
            if gradient is not None:
                gradient[index] = logits @ weight
            del logits  # else two chunks of logits would exist at a time
        ctx.save_for_backward(gradient)
        ctx.boost = boost
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        for rows in gradient.split(2048):  # in parts, for small fp32 copies
            rows.copy_(rows.float() * (grads[0] / ctx.boost))
        return gradient, None, None


def _chunks(
    hidden: torch.Tensor, weight: torch.Tensor, batch: MicroBatch, boost: float
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Label positions, loss weights, losses and logits of one chunk after the other.

    The logits are already their own gradient, times `boost` and the loss weights.
    """
    size = max(1, _CHUNK_BYTES // (weight.shape[0] * weight.element_size()))
    size = min(size, max(_TILE_ROWS, len(batch.label_positions) // _MIN_CHUNKS))
    size = size // _TILE_ROWS * _TILE_ROWS or size
    for index, targets, weights in zip(
        batch.label_positions.split(size),
        batch.targets.split(size),
        batch.weights.split(size),
        strict=True,
    ):
        logits = hidden[index] @ weight.T
        losses = kernels_for(logits).cross_entropy_(logits, targets, boost * weights)
        yield index, weights, losses, logits


def _frozen_head_losses(
    hidden: torch.Tensor, weight: torch.Tensor, batch: MicroBatch
) -> torch.Tensor:
    """The losses [M] of hidden [T, h] through a frozen head [V, h]."""
    return torch.cat([losses for _, _, losses, _ in _chunks(hidden, weight, batch, 1.0)])
