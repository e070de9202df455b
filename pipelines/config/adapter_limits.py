"""What no engine serves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipelines.adapter_format.limits import REGISTRY_MAX_RANK, REGISTRY_MAX_SCALE, VLLM_RANKS

if TYPE_CHECKING:
    from pipelines.config.schema import LoraConfig


_NEEDS_MORE = {
    "dora": "magnitudes beside A and B",
    "rank_pattern": "another rank in some modules",
    "alpha_pattern": "another scale in some modules",
    "modules_to_save": "whole modules beside A and B",
}


def unservable_keys(lora: LoraConfig, engine: str | None) -> list[str]:
    """One line for each key of `lora` whose adapter `engine` (None: any that is known) cannot serve as it was trained.

    rsLoRA, LoRA+ and every `init` are plain LoRA once saved, PiSSA with twice the rank.
    """
    who = {"transformers": "the transformers engine", "vllm": "vLLM", None: "no engine here"}[
        engine
    ]
    does = "serves" if engine is None else "does not serve"
    lines = [
        f"lora.{key} trains {what}, which {who} {does} and the registry refuses: unset it"
        for key, what in _NEEDS_MORE.items()
        if getattr(lora, key)
    ]
    rank = saved_rank(lora)
    if engine == "vllm" and rank > VLLM_RANKS[-1]:
        halved = " (twice lora.r, as PiSSA is saved)" if rank != lora.r else ""
        lines.append(
            f"the adapter's rank is {rank}{halved} and vLLM's highest is {VLLM_RANKS[-1]}: set lora.r lower"
        )
    return lines


def unregistrable_keys(lora: LoraConfig) -> list[str]:
    """One line for each reason why the registry would refuse the adapter that `lora` trains."""
    lines, rank = unservable_keys(lora, None), saved_rank(lora)
    if rank > REGISTRY_MAX_RANK:
        halved = " (twice lora.r, as PiSSA is saved)" if rank != lora.r else ""
        lines.append(
            f"the adapter's rank is {rank}{halved} and the registry's highest is {REGISTRY_MAX_RANK}: set lora.r lower"
        )
    scale = lora.alpha / (math.sqrt(lora.r) if lora.rslora else lora.r)
    if scale > REGISTRY_MAX_SCALE:
        lines.append(
            f"lora.alpha={lora.alpha:g} at lora.r={lora.r} scales the adapter by {scale:g} and the registry's highest is "
            f"{REGISTRY_MAX_SCALE:g}: set lora.alpha lower"
        )
    return lines


def saved_rank(lora: LoraConfig) -> int:
    """The rank of the adapter as it is saved."""
    return lora.r * (2 if lora.init == "pissa" else 1)


def vllm_max_rank(lora: LoraConfig) -> int:
    """The least --max-lora-rank that vLLM takes for the adapter; `unservable_keys` has said if there is none."""
    return next(rank for rank in VLLM_RANKS if rank >= saved_rank(lora))
