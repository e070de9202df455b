"""Per-token losses for the proof of a base: by the packed path, and by transformers' own forward.

Both run on the same weights. The reference is transformers' eager attention, which defines what a
base computes. Its scores grow with the square of a sample's length, so the end of a very long
sample is compared with sdpa attention instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipelines.layers.decoder_layer import without_fused_layers
from pipelines.train.batch import collate
from pipelines.train.loss import PackedLoss
from pipelines.train.proof_mode import (
    EAGER,
    EAGER_RECAST,
    SDPA,
    attention_named,
    computes_in_fp32,
    supports_sdpa,
)

FP32_LIMIT = 1e-5
NOISE_FACTOR = 3.0
_CHUNK_TOKENS = 256  # of which the logits exist in fp32 at a time
_EAGER_SCORES = 2**27  # of one layer that may exist, about 10 bytes each
_LOGITS = 2**30  # that may exist


def packed_losses(
    loss: PackedLoss, samples: Sequence[np.ndarray], device: torch.device
) -> list[torch.Tensor]:
    """The losses fp32 [T - 1] of each sample's tokens but the first, all samples in one pack."""
    losses = loss(collate([_row(samples)], device), per_token=True)
    return list(losses.float().cpu().split([len(sample) - 1 for sample in samples]))


def reference_and_noise(
    loss: PackedLoss, samples: Sequence[np.ndarray], device: torch.device
) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """Losses like those of `packed_losses`, by transformers' own forward of one sample at a time.

    Of a sample that is too long for the reference, the first tokens only. Also returns the rounding
    noise of tokens, which is None where everything is computed in fp32: the absolute difference
    between transformers' eager and sdpa attention. Where the base has no sdpa, or one that computes
    something else, it is the difference between eager attention in two precisions. So it is in fp32
    with weights that round activations to 8 or 16 bits: two attentions in fp32 are so close that
    often no activation is rounded differently, which does not show the noise of that rounding.
    """

    def losses_of(sample: np.ndarray, attention: str) -> torch.Tensor:
        return _reference_losses(loss, sample, attention, device)

    num_eager, num_sdpa = _num_tokens(loss.model)
    numbers, has_sdpa = range(len(samples)), supports_sdpa(loss.model)
    exact = computes_in_fp32(loss)
    half = loss.model.get_input_embeddings().weight.dtype != torch.float32
    # In half precision with sdpa, the longest sample shows whether sdpa computes the same.
    longest = [max(numbers, key=lambda i: len(samples[i]))]
    in_recast = [] if exact else longest if half and has_sdpa else numbers
    in_sdpa = [i for i in numbers if has_sdpa and (half or len(samples[i]) > num_eager)]
    eager = [losses_of(sample[:num_eager], EAGER) for sample in samples]
    recast = {
        i: (losses_of(samples[i][:num_eager], EAGER_RECAST) - eager[i]).abs() for i in in_recast
    }
    sdpa = {i: losses_of(samples[i][:num_sdpa], SDPA) for i in in_sdpa}
    noise = {i: (losses[: len(eager[i])] - eager[i]).abs() for i, losses in sdpa.items()}
    tolerance = NOISE_FACTOR * float(recast[longest[0]].mean()) if recast else FP32_LIMIT
    if any(float(noise[i].mean()) > tolerance for i in noise if exact or i in recast):
        sdpa, noise = {}, {}
    reference = [
        torch.cat([losses, sdpa[i][len(losses) :]]) if i in sdpa else losses
        for i, losses in enumerate(eager)
    ]
    if exact:
        return reference, None
    noise = noise if half and noise else recast
    # A sample without a measure of its own has the mean noise of the others.
    mean = torch.cat(list(noise.values())).mean()
    return reference, [noise.get(i, mean.expand(len(eager[i]))) for i in numbers]


def _num_tokens(model: Any) -> tuple[int, int]:
    """The most tokens of a sample for eager attention, and for any other."""
    config = model.config.get_text_config()
    num_logits = max(2, _LOGITS // config.vocab_size)
    heads = getattr(config, "num_attention_heads", None) or 1
    heads = max(heads) if isinstance(heads, (list, tuple)) else heads
    return min(num_logits, max(2, math.isqrt(_EAGER_SCORES // heads))), num_logits


def _reference_losses(
    loss: PackedLoss, sample: np.ndarray, attention: str, device: torch.device
) -> torch.Tensor:
    """The losses fp32 [T - 1] of one sample by the forward of transformers and PEFT.

    That is the forward of the complete model: its own layers instead of fused ones, its head and
    what it does to the logits, with PEFT's own adapters.
    """
    ids = torch.from_numpy(np.asarray(sample, np.int64)).to(device)

    def forward(input_ids: torch.Tensor) -> torch.Tensor:
        logits = loss.model(input_ids=input_ids, use_cache=False).logits[0, :-1]
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
        return loss(ids[None]).cpu()


@contextmanager
def _running(
    forward: Callable[[torch.Tensor], torch.Tensor], module: torch.nn.Module
) -> Iterator[None]:
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
