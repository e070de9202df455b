"""The two measures of a model: the negative log-likelihood of held-out labels, and exact answers.

Shapes: B samples, T tokens of the longest one, V vocabulary, N labels with weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.model.supported import evaluate_refusal, published_values, refuse

if TYPE_CHECKING:
    import torch


def weighted_nll(
    model: Any, tokens: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> tuple[float, float, int]:
    """Sum of weight x -log p(label), sum of weights, and number of labels with weight, in a batch.

    `weights[i][t]` is the weight of token t of sample i as a label, predicted from the tokens
    before it. The first token of a sample has none before it and is never a label. The held-out
    loss is the first sum divided by the second, each over all batches; it is not a mean of batch
    means. Logits are reduced in fp32 whatever the model's dtype. Raises UserError for samples whose
    result would depend on the others of the batch.
    """
    import torch

    check_lengths(model, max(map(len, tokens)))
    ids, mask = pad_batch(tokens, left=False)
    label_weights = torch.zeros(ids.shape)  # [B, T]
    for row, values in enumerate(weights):
        label_weights[row, : len(values)] = torch.from_numpy(np.array(values, dtype=np.float32))
    label_weights = label_weights[:, 1:].to(model.device)
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.inference_mode():
        output = model(input_ids=ids, attention_mask=mask, use_cache=False)
        logits = output.logits[:, :-1]  # [B, T-1, V]
        has_weight = label_weights > 0  # [B, T-1]
        nll = torch.nn.functional.cross_entropy(
            logits[has_weight].float(), ids[:, 1:][has_weight], reduction="none"
        )  # [N]
        weight = label_weights[has_weight]  # [N]
        weighted = (nll.double() * weight).sum()
        return float(weighted), float(weight.double().sum()), int(has_weight.sum())


def check_lengths(model: Any, num_tokens: int) -> None:
    """Raise UserError if a sample of that many tokens changes the numbers of its neighbours."""
    base = published_values(model.config)
    refuse(base, evaluate_refusal(base, num_tokens))


def pad_batch(tokens: Sequence[np.ndarray], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both int64 [B, T].

    Padding is 0 in both. It is before the tokens with `left`, as generation needs it, else after
    them.
    """
    import torch

    longest = max(len(t) for t in tokens)
    ids = torch.zeros((len(tokens), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, values in enumerate(tokens):
        columns = slice(longest - len(values), None) if left else slice(0, len(values))
        ids[row, columns] = torch.from_numpy(np.array(values, dtype=np.int64))
        mask[row, columns] = 1
    return ids, mask


def is_exact(generated: str, reference: str) -> bool:
    """True if an answer equals the reference, except for whitespace at both ends."""
    return generated.strip() == reference.strip()
