"""Per-token losses for the proof of a base: by the packed path, and by transformers' own forward.

Both run on the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipelines.layers.decoder_layer import without_fused_layers
from pipelines.train.batch import collate
from pipelines.train.loss import PackedLoss
from pipelines.train.proof_mode import attention_named

_CHUNK_TOKENS = 256  # of which the logits exist in fp32 at a time


def packed_losses(loss: PackedLoss, samples: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """The losses fp32 [T - 1] of each sample's tokens but the first, all samples in one pack."""
    losses = loss(collate([_row(samples)], _device(loss)), per_token=True)
    return list(losses.float().cpu().split([len(sample) - 1 for sample in samples]))


def reference_losses(loss: PackedLoss, sample: np.ndarray, attention: str) -> torch.Tensor:
    """The losses fp32 [T - 1] of one sample's tokens but the first, by transformers' own forward.

    That is the forward of the complete model: its own layers instead of fused ones, its head and
    what it does to the logits, with PEFT's own adapters. `attention` is a name of transformers'
    attention functions.
    """
    ids = torch.from_numpy(np.asarray(sample, np.int64)).to(_device(loss))

    def forward(_: None) -> torch.Tensor:
        logits = loss.model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        chunks = zip(logits.split(_CHUNK_TOKENS), ids[1:].split(_CHUNK_TOKENS), strict=True)
        losses = (
            functional.cross_entropy(part.float(), targets, reduction="none")
            for part, targets in chunks
        )
        return torch.cat(list(losses))

    with (
        without_fused_layers(loss.model),
        attention_named(attention, loss.model),
        _running(forward, loss),
    ):
        # Called as a module: under ZeRO-3 the hooks of this call start a new pass over the weights.
        return loss(None).cpu()


@contextmanager
def _running(forward: Callable[[None], torch.Tensor], module: torch.nn.Module) -> Iterator[None]:
    """Inside, a call of `module` runs `forward` between the hooks of the module."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _row(samples: Sequence[np.ndarray]) -> dict[str, Any]:
    ids = np.concatenate(samples)
    return {
        "input_ids": ids,
        "loss_weights": np.ones(len(ids), np.float32),
        "sample_lengths": [len(sample) for sample in samples],
        "sample_ids": [],
    }


def _device(loss: PackedLoss) -> torch.device:
    return loss.model.get_input_embeddings().weight.device
