"""How a base's decoder layers run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pipelines.config.schema import TrainConfig
from pipelines.core.errors import UserError

if TYPE_CHECKING:
    import torch


def checkpoint_gradients(base: Any, mode: str) -> None:
    """Recompute activations in the backward pass: of every layer (full) or of every second one (selective)."""
    if mode == "off":
        return
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [
        m
        for m in base.modules()
        if getattr(m, "gradient_checkpointing", False) and hasattr(m, "self_attn")
    ]
    for layer in layers[1::2] if mode == "selective" else ():
        layer.gradient_checkpointing = False


def fuse_layers(model: Any, train: TrainConfig, device: torch.device) -> None:
    """Make the layers fused ones, by `train.fused`; a fall-back is logged with its reason.

    They take over gradient checkpointing. Raises UserError when `train.fused` is on and they do not fit.
    """
    from pipelines.layers.decoder_layer import fuse

    if train.fused == "on" and train.method == "full":
        raise UserError(
            "train.fused=on trains adapters only, but train.method=full: set train.fused=auto"
        )
    if (
        train.fused == "off"
        or train.method == "full"
        or (train.fused == "auto" and device.type == "cpu")
    ):
        return
    reason = fuse(model, train.zero != 3, str(train.gradient_checkpointing))
    if reason and train.fused == "on":
        raise UserError(f"train.fused=on, but {reason}: set train.fused=auto")
    if reason:
        logging.getLogger(__name__).warning(
            "train.fused: the base's own layers run, because %s", reason
        )
