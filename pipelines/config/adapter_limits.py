"""Limits on the adapters that can be served and registered, checked before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.adapter_format.limits import REGISTRY_MAX_RANK, REGISTRY_MAX_SCALE, VLLM_RANKS
from pipelines.adapter_format.scale import lora_scale

if TYPE_CHECKING:
    from pipelines.config.schema import LoraConfig


_NEEDS_MORE = {
    "dora": "magnitudes in addition to A and B",
    "rank_pattern": "another rank in some modules",
    "alpha_pattern": "another scale in some modules",
    "modules_to_save": "full modules in addition to A and B",
}
_ENGINES = {
    "transformers": "the transformers engine does not serve",
    "vllm": "vLLM does not serve",
    None: "no engine here serves",
}


def unservable_keys(lora: LoraConfig, engine: str | None) -> list[str]:
    """One line for each key of `lora` whose adapter `engine` cannot serve as it was trained; None
    means any engine.

    rsLoRA, LoRA+ and every `init` are plain LoRA once saved, PiSSA with twice the rank.
    """
    lines = [
        f"lora.{key} trains {addition}, which {_ENGINES[engine]} and the registry refuses: unset it"
        for key, addition in _NEEDS_MORE.items()
        if getattr(lora, key)
    ]
    if engine == "vllm" and saved_rank(lora) > VLLM_RANKS[-1]:
        lines.append(_rank_line(lora, "vLLM", VLLM_RANKS[-1]))
    return lines


def unregistrable_keys(lora: LoraConfig) -> list[str]:
    """One line for each reason why the registry would refuse the adapter that `lora` trains."""
    lines = unservable_keys(lora, None)
    if saved_rank(lora) > REGISTRY_MAX_RANK:
        lines.append(_rank_line(lora, "the registry", REGISTRY_MAX_RANK))
    scale = lora_scale(lora.alpha, lora.r, lora.rslora)
    if scale > REGISTRY_MAX_SCALE:
        lines.append(
            f"lora.alpha={lora.alpha:g} at lora.r={lora.r} scales the adapter by {scale:g} and the "
            "registry's highest "
            f"is {REGISTRY_MAX_SCALE:g}: set lora.alpha lower"
        )
    return lines


def _rank_line(lora: LoraConfig, owner: str, highest: int) -> str:
    doubled = " (twice lora.r, as PiSSA is saved)" if saved_rank(lora) != lora.r else ""
    return (
        f"the adapter's rank is {saved_rank(lora)}{doubled} and {owner}'s highest is {highest}: "
        "set lora.r lower"
    )


def saved_rank(lora: LoraConfig) -> int:
    """The rank of the adapter as it is saved."""
    return lora.r * (2 if lora.init == "pissa" else 1)


def vllm_max_rank(lora: LoraConfig) -> int:
    """The least --max-lora-rank with which vLLM takes the adapter. `unservable_keys` refuses ranks
    without one.
    """
    return next(rank for rank in VLLM_RANKS if rank >= saved_rank(lora))
