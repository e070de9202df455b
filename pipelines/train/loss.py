"""The loss of a micro-batch: the weighted sum of next-token losses over the trained tokens.

L = sum_t w_t * -log p(x_t | x_<t) over loss tokens, not divided: the loop divides by the sum of w over the whole step
and all ranks, which is exact under packing, accumulation and any number of ranks. M = loss tokens, V = vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.nn import functional

from pipelines.layers.kernels import kernels_for
from pipelines.train.batch import MicroBatch

_CHUNK_BYTES = 2**28  # of logits that exist at a time
_WHOLE_TILES = 256  # rows of a chunk are a multiple of the products' tiles where there are as many
_LEAST_CHUNKS = 8  # so that a small micro-batch's logits are small beside what it holds anyway


class PackedLoss(torch.nn.Module):
    """Wraps a PEFT model (or a plain one) so that its forward returns the summed loss (fp32 scalar) of a micro-batch.

    The head runs only on positions that are in the loss: masked positions are most of an instruction dataset.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> torch.Tensor:
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
                head(hidden[batch.trained]).float(), batch.targets, reduction="none"
            )
            return cast(torch.Tensor, losses @ batch.weights)
        # Called as the module that it is, because ZeRO-3 brings a module's weights when it is called.
        cast(Any, head).forward = lambda states: _FrozenHeadLoss.apply(states, head.weight, batch)
        try:
            return cast(torch.Tensor, head(hidden))
        finally:
            del head.forward


class _FrozenHeadLoss(torch.autograd.Function):
    """Loss of hidden [T, h] through a head [V, h] that does not train: two matrix products, and few logits at a time.

    The loss is a sum, so its gradient with respect to the logits is known in the forward, up to the factor that the
    backward brings. The logits of one chunk of rows become their gradient in place (as in Liger's fused linear cross
    entropy, Hsu et al. 2024, arXiv:2410.10989, without the product for the head's own gradient).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, batch: MicroBatch
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = max(1, _CHUNK_BYTES // (weight.shape[0] * weight.element_size()))
        size = min(size, max(_WHOLE_TILES, len(batch.trained) // _LEAST_CHUNKS))
        size = size // _WHOLE_TILES * _WHOLE_TILES or size
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        boost = (
            1024.0 if hidden.dtype == torch.float16 else 1.0
        )  # small gradients exist before the loss scale comes
        for index, targets, weights in zip(
            batch.trained.split(size),
            batch.targets.split(size),
            batch.weights.split(size),
            strict=True,
        ):
            logits = hidden[index] @ weight.T
            total += kernels_for(logits).cross_entropy_(logits, targets, boost * weights) @ weights
            if gradient is not None:
                gradient[index] = logits @ weight
        ctx.save_for_backward(gradient)
        ctx.boost = boost
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        for rows in gradient.split(2048):
            rows.copy_(rows.float() * (grads[0] / ctx.boost))
        return gradient, None, None
