"""Fold an adapter into its base, W = W0 + scale * B A, so that serving it costs nothing extra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.config.schema import ModelConfig
from pipelines.model.base import load_base
from pipelines.model.lora_load import add_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge_adapter(
    config: ModelConfig, adapter_dir: Path, device: str | None = None
) -> PreTrainedModel:
    """A plain model in the base's dtype with the adapter folded in.

    A 4-bit or 8-bit base is dequantized first, since the adapter was trained on those values; an
    fp8 base is loaded in its own dtype instead. The base is always loaded again: bitsandbytes
    repacks a 4-bit weight for the CPU in its first forward, after which dequantizing reads it
    wrong.
    """
    if config.quantization == "fp8":
        config = config.model_copy(update={"quantization": "none"})
    model: Any = load_base(config, device)
    if config.quantization != "none":
        model = model.dequantize()
    merged = add_adapter(model, "merged", adapter_dir).merge_and_unload(safe_merge=True)
    return cast("PreTrainedModel", merged.eval())
