"""The loss as plain transformers and PEFT give it: each sample by itself, no packing, no code of
the trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def plain_loss(model: Any, rows: Iterable[Mapping[str, Any]]) -> float:
    """Mean loss of a token over packed rows, weighted as they say, on the model's own device."""
    import torch

    total = count = 0.0
    for row in rows:
        ends = np.cumsum(row["sample_lengths"])
        for start, end in zip(ends - row["sample_lengths"], ends, strict=True):
            ids = torch.tensor(row["input_ids"][start:end], dtype=torch.int64, device=model.device)
            weights = torch.tensor(row["loss_weights"][start:end], device=model.device)[1:]
            with torch.no_grad():
                logp = model.eval()(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
            total -= float((logp.gather(1, ids[1:, None])[:, 0] * weights).sum())
            count += float(weights.sum())
    return total / count
