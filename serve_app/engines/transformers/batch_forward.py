"""The forward of a batch whose rows are at their own positions of a slot cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from serve_app.engines.transformers.slots import SlotCache


def pad_prompts(prompts: Sequence[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and positions of prompts that are computed together, [n, longest].

    All prompts end in the last column. A shorter prompt is padded on the left, and its padding has
    the positions after the prompt's end, where the causal mask hides it from every token of the
    prompt and the row's next tokens overwrite it.
    """
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    positions = [[*range(len(prompt), longest), *range(len(prompt))] for prompt in prompts]
    return ids, positions


def last_logits(
    model: Any,
    cache: SlotCache,
    ids: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    first_row: int = 0,
) -> torch.Tensor:
    """Logits [n, V] (fp32) of the last column, for the rows from `first_row` on."""
    position_ids = torch.tensor(positions, device=model.device)
    mask = cache.begin(first_row, position_ids)
    if model.config._attn_implementation == "eager":  # adds its mask to the scores
        hidden = torch.finfo(model.dtype).min
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
            ~mask, hidden
        )
    output = model(
        input_ids=torch.tensor(ids, device=model.device),
        position_ids=position_ids,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()
