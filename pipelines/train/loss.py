"""The loss of a micro-batch: the weighted sum of next-token losses over the trained tokens.

L = sum_t w_t * -log p(x_t | x_<t) over loss tokens, not divided: the loop divides by the sum of w over the whole step
and all ranks, which is exact under packing, accumulation and any number of ranks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.nn import functional

from pipelines.train.batch import MicroBatch


class PackedLoss(torch.nn.Module):
    """Wraps a PEFT model (or a plain one) so that its forward returns the summed loss (fp32 scalar) of a micro-batch.

    The head runs only on positions that are in the loss: the frozen head has no gradient of its own to collect, and
    masked positions are most of an instruction dataset.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        causal = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = causal.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, bounds=batch.bounds
        ).last_hidden_state
        logits = causal.lm_head(hidden[0, batch.trained]).float()
        losses = functional.cross_entropy(logits, batch.targets, reduction="none")
        return cast(torch.Tensor, losses @ batch.weights)
