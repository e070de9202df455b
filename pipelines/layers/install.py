"""Apply the recipe's `train.gradient_checkpointing` and `train.fused` to a loaded model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pipelines.config.schema import TrainConfig
from pipelines.core.errors import UserError

if TYPE_CHECKING:
    import torch


def checkpoint_gradients(base: Any, mode: str) -> None:
    """Recompute activations in the backward pass: full is every layer, selective every second."""
    if mode == "off":
        return
    # The reentrant form would need inputs that require gradients, and embeddings are frozen.
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [
        module
        for module in base.modules()
        if getattr(module, "gradient_checkpointing", False) and hasattr(module, "self_attn")
    ]
    for layer in layers[1::2] if mode == "selective" else ():
        layer.gradient_checkpointing = False


def wants_fused(train: TrainConfig, device_type: str) -> bool:
    """True if the recipe asks for the fused layers on a device; auto is on for GPUs."""
    automatic = train.fused == "auto" and device_type != "cpu"
    return train.method == "lora" and (train.fused == "on" or automatic)


def fuse_layers(model: Any, train: TrainConfig, device: torch.device) -> None:
    """Install the fused layers as `train.fused` asks; they take over gradient checkpointing.

    With `auto` a model that they do not fit keeps its own layers, and the reason is logged. With
    `on` raises UserError instead.
    """
    from pipelines.layers.decoder_layer import fuse

    if train.fused == "on" and train.method == "full":
        raise UserError(
            "train.fused=on trains adapters only, but train.method=full: set train.fused=auto"
        )
    if not wants_fused(train, device.type):
        return
    # Under ZeRO-3 each weight is gathered and freed by itself, so weights cannot share a buffer.
    reason = fuse(model, train.zero != 3, str(train.gradient_checkpointing))
    if reason and train.fused == "on":
        raise UserError(f"train.fused=on, but {reason}: set train.fused=auto")
    if reason:
        logging.getLogger(__name__).warning(
            "train.fused: the base's own layers run, because %s", reason
        )
