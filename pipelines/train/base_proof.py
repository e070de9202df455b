"""The proof of a base: the packed path must compute what transformers' own forward computes.

A few samples run through the packed path, and one at a time through transformers' own forward on
the same weights, and the losses of their tokens are compared. In fp32 the mean absolute difference
may be FP32_LIMIT. In other precisions it may be NOISE_FACTOR times the rounding noise that
transformers itself shows on the same samples (`proof_losses`).

A mean over many tokens hides a few wrong ones, such as those behind a window that the longest
sample just crosses. Therefore no BLOCK_TOKENS neighbouring tokens may differ by more than
BLOCK_FACTOR times that limit, or by as much more than their own noise.

Samples of a pack must not see each other: a change of the first sample's tokens may move no other
sample's loss. The control for that test is a change of the last sample's tokens. In a causal model
it cannot reach the samples before, so what it moves is rounding. For most models that is exactly 0;
experts, which multiply the tokens of all samples in one product, round a little differently. The
longest sample is the last one, so that the control changes more tokens than the test.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.train.loss import PackedLoss
from pipelines.train.proof_losses import (
    FP32_LIMIT,
    NOISE_FACTOR,
    packed_losses,
    reference_and_noise,
)
from pipelines.train.proof_mode import proof_mode, unreached_adapters, without_zero_adapters

BLOCK_TOKENS, BLOCK_FACTOR = 32, 2.0


@dataclass(frozen=True)
class Difference:
    """The difference of the losses of two paths in nats, with its limits.

    `mean` and `largest` are absolute differences over all tokens. Of the blocks of BLOCK_TOKENS
    neighbouring tokens, `block` is the mean of the one that exceeds its own `block_limit` most; it
    begins at token `block_start` of sample number `block_sample`.
    """

    mean: float
    largest: float
    limit: float
    block: float
    block_limit: float
    block_sample: int
    block_start: int

    @property
    def is_small(self) -> bool:
        """False for losses that are not finite, too."""
        return self.mean <= self.limit and self.block <= self.block_limit


@dataclass(frozen=True)
class BaseProof:
    """The result of `prove_base`.

    `packed_loss` and `reference_loss` are the mean losses of the two paths. `leak` is the mean
    change of the other samples' losses after the first sample of the pack was changed, and
    `leak_limit` the largest change that rounding explains. `unreached` are the adapted modules that
    transformers' forward does not call, such as those of a vision tower: they would never train.
    """

    num_samples: int
    num_tokens: int
    difference: Difference
    packed_loss: float
    reference_loss: float
    leak: float
    leak_limit: float
    unreached: tuple[str, ...]
    seconds: float

    @property
    def leaks(self) -> bool:
        """Whether the samples of a pack see each other."""
        return not self.leak <= self.leak_limit

    @property
    def holds(self) -> bool:
        """Whether the packed path computes this base, and every adapter is part of it."""
        return self.difference.is_small and not self.leaks and not self.unreached

    def __str__(self) -> str:
        difference = self.difference
        leak = f"leak {self.leak:.1e}" if self.leaks else "no leak"
        return (
            f"{self.num_samples} samples, mean difference {difference.mean:.1e} "
            f"(limit {difference.limit:.1e}), {leak}"
        )


@torch.no_grad()
def prove_base(
    loss: PackedLoss, samples: Sequence[np.ndarray], device: torch.device | None = None
) -> BaseProof:
    """Compare the packed path of `loss` with transformers' own forward on these samples.

    A sample is its token ids, int [T] with T of at least 2. `loss` may have fused layers, adapters
    and any quantization, and may be the module of a ZeRO-3 engine; then all ranks call this with
    equal samples. `device` is that of the input embeddings by default. Weights, modes, random
    states and attention are the same afterwards. Raises what the base's forward raises.
    """
    started = time.perf_counter()
    on: torch.device = device or loss.model.get_input_embeddings().weight.device
    # A pack of one sample could show no leak.
    by_length = sorted([*samples, *samples] if len(samples) == 1 else samples, key=len)
    samples = [by_length[-2], *by_length[:-2], by_length[-1]]
    with proof_mode(loss), torch.random.fork_rng([on] if on.type == "cuda" else []):
        packed = packed_losses(loss, samples, on)
        with unreached_adapters(loss.model) as unreached, without_zero_adapters(loss.model):
            reference, noise = reference_and_noise(loss, samples, on)
        changed = [_changed(samples[0], samples), *samples[1:]]
        leak = _moved(packed[1:], packed_losses(loss, changed, on)[1:])
        changed = [*samples[:-1], _changed(samples[-1], samples)]
        rounding = _moved(packed[:-1], packed_losses(loss, changed, on)[:-1])
    if on.type == "cuda":
        torch.cuda.empty_cache()  # the buffers of attention without flash are large
        torch.cuda.reset_peak_memory_stats(on)  # the peak that a run reports is that of its steps
    compared = [losses[: len(other)] for losses, other in zip(packed, reference, strict=True)]
    return BaseProof(
        num_samples=len(samples),
        num_tokens=sum(len(sample) for sample in samples),
        difference=_difference(compared, reference, noise),
        packed_loss=float(torch.cat(compared).mean()),
        reference_loss=float(torch.cat(reference).mean()),
        leak=leak,
        leak_limit=NOISE_FACTOR * rounding,
        unreached=tuple(unreached),
        seconds=time.perf_counter() - started,
    )


def _difference(
    packed: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    noise: Sequence[torch.Tensor] | None,
) -> Difference:
    differences = [(a - b).abs() for a, b in zip(packed, reference, strict=True)]
    together = torch.cat(differences)
    limit = FP32_LIMIT if noise is None else NOISE_FACTOR * float(torch.cat(list(noise)).mean())
    blocks = []
    for number, losses in enumerate(differences):
        for start, end in _blocks(len(losses)):
            own_noise = noise[number][start:end] if noise else torch.empty(0)
            own = NOISE_FACTOR * float(own_noise.mean()) if len(own_noise) else 0.0
            block_limit = BLOCK_FACTOR * max(limit, own)
            blocks.append((float(losses[start:end].mean()), block_limit, number, start))
    worst = max(blocks, key=lambda block: block[0] / max(block[1], 1e-30))
    return Difference(float(together.mean()), float(together.max()), limit, *worst)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """Bounds of a sample's blocks, the last one moved back so that it is full, too."""
    starts = [*range(0, max(1, length - BLOCK_TOKENS), BLOCK_TOKENS), max(0, length - BLOCK_TOKENS)]
    return ((start, min(length, start + BLOCK_TOKENS)) for start in dict.fromkeys(starts))


def _moved(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    return float((torch.cat(list(after)) - torch.cat(list(before))).abs().mean())


def _changed(sample: np.ndarray, samples: Sequence[np.ndarray]) -> np.ndarray:
    """A sample of the same length with another id, from any of the samples, at every position."""
    ids = np.unique(np.concatenate(samples))
    if len(ids) == 1:
        return np.where(sample > 0, sample - 1, 1).astype(sample.dtype)
    return ids[(np.searchsorted(ids, sample) + max(1, len(ids) // 2)) % len(ids)]
