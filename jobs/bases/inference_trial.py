"""Trials of loading, merging and evaluating a tiny copy, against transformers and PEFT alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from jobs.bases.tiny_samples import samples
from pipelines.config.schema import ModelConfig
from pipelines.model.base import load_base
from pipelines.model.support_table import YES, Cell

_TOLERANCE = 1e-4  # of the largest logit
_NEW_TOKENS = 8
_STOP_ID = 2


def try_loading(base: Path, expected: torch.Tensor) -> Cell:
    """Whether a loaded copy has the logits of transformers' own, as `logits_of` computes them."""
    loaded = load_base(ModelConfig(base=str(base), dtype="fp32"), "cpu")
    return _compare(logits_of(loaded), expected, "logits")


def try_merging(base: Path, adapter: Path) -> Cell:
    """Whether a copy with an adapter merged in has the logits of PEFT."""
    from pipelines.model.merge import merge_adapter

    merged = merge_adapter(ModelConfig(base=str(base), dtype="fp32"), adapter, "cpu")
    return _compare(logits_of(merged), logits_of(reference_model(base, adapter)), "merged logits")


def try_evaluating(base: Path, adapter: Path) -> Cell:
    """Whether losses and answers of padded batches are those of each sample alone."""
    from pipelines.eval.metrics import weighted_nll
    from pipelines.eval.scorer import greedy
    from pipelines.model.lora_load import add_adapter

    loaded = add_adapter(
        load_base(ModelConfig(base=str(base), dtype="fp32"), "cpu"), "adapter", adapter
    )
    reference, tokens = reference_model(base, adapter), samples()
    nll, _, _ = weighted_nll(loaded, tokens, [np.ones(len(each), np.float32) for each in tokens])
    expected = sum(float(_losses_alone(reference, each).sum()) for each in tokens)
    if not abs(nll - expected) <= _TOLERANCE * expected:
        return Cell("silent", f"held-out loss {nll:.4f}, {expected:.4f} one sample at a time")
    answers = greedy(loaded, tokens, _NEW_TOKENS, [_STOP_ID])
    for answer, sample in zip(answers, tokens, strict=True):
        alone = greedy_alone(reference, sample, _NEW_TOKENS)
        alone = alone[: alone.index(_STOP_ID)] if _STOP_ID in alone else alone
        if answer.tolist() != alone:
            return Cell("silent", f"a batch answers {answer.tolist()}, the prompt alone {alone}")
    return YES


def reference_model(base: Path, adapter: Path | None = None) -> Any:
    """A copy as transformers and PEFT load it, with the attention that transformers chooses."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    if adapter is not None:
        model.load_adapter(str(adapter))
    return model.eval()


@torch.no_grad()
def greedy_alone(model: Any, prompt: np.ndarray, num_tokens: int) -> list[int]:
    """The most likely tokens after a prompt, each by a forward of everything before it."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    for _ in range(num_tokens):
        next_id = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, next_id[:, None]], 1)
    return ids[0, len(prompt) :].tolist()


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    """Logits fp32 [1, T, V] of the first sample."""
    ids = torch.from_numpy(samples()[0].astype(np.int64))[None]
    return model(input_ids=ids, use_cache=False).logits.float()


@torch.no_grad()
def _losses_alone(model: Any, sample: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(sample.astype(np.int64))[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return functional.cross_entropy(logits.double(), ids[0, 1:], reduction="none")


def _compare(actual: torch.Tensor, expected: torch.Tensor, noun: str) -> Cell:
    difference = float((actual - expected).abs().max() / expected.abs().max())
    if difference <= _TOLERANCE:
        return YES
    return Cell("silent", f"{noun} differ from transformers' by {difference:.1e} of the largest")
