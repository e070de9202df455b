"""What is measured on one model: the weighted negative log-likelihood of held-out labels, and exact answers.

Shapes: B samples, T tokens of the longest, V vocabulary, N labels with weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def weighted_nll(
    model: Any, tokens: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> tuple[float, float, int]:
    """Sum of weight x -log p(label), sum of weights and number of labels with weight, over one batch of samples.

    `weights[i][t]` is the weight of token t as a label, predicted from the tokens before it in its own sample; a first
    token has nothing before it and is never a label. The held-out loss is the first sum over the second, taken over all
    batches (not a mean of means). Logits are reduced in fp32 whatever the model's dtype.
    """
    import torch

    ids, mask = pad_batch(tokens, left=False)
    label_weights = torch.zeros(ids.shape)  # [B, T]
    for row, values in enumerate(weights):
        label_weights[row, : len(values)] = torch.from_numpy(np.array(values, dtype=np.float32))
    label_weights = label_weights[:, 1:].to(model.device)
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[
            :, :-1
        ]  # [B, T-1, V]
        chosen = label_weights > 0
        nll = torch.nn.functional.cross_entropy(
            logits[chosen].float(), ids[:, 1:][chosen], reduction="none"
        )  # [N]
        kept = label_weights[chosen]
        return float((nll.double() * kept).sum()), float(kept.double().sum()), int(chosen.sum())


def pad_batch(tokens: Sequence[np.ndarray], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [B, T], padded with zeros that the mask hides, before (left) or after the tokens."""
    import torch

    longest = max(len(t) for t in tokens)
    ids = torch.zeros((len(tokens), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, values in enumerate(tokens):
        where = slice(longest - len(values), None) if left else slice(0, len(values))
        ids[row, where] = torch.from_numpy(np.array(values, dtype=np.int64))
        mask[row, where] = 1
    return ids, mask


def is_exact(generated: str, reference: str) -> bool:
    """Whether an answer is the reference, outer whitespace aside."""
    return generated.strip() == reference.strip()
