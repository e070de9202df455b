"""How a base's decoder layers run in training: its own, or the fused ones of this package where they fit.

The fused layers are those of the Llama kind with LoRA, written out by hand: few large products, nothing stored that is
cheap to have again, and no gradient for what is frozen. `layer` puts them on a model, `halves` are their arithmetic.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pipelines.contracts import UserError
from pipelines.recipe import TrainConfig

if TYPE_CHECKING:
    import torch


def checkpoint_gradients(base: Any, mode: str) -> None:
    """Recompute activations in the backward pass: of every layer (full) or of every second one (selective)."""
    if mode == "off":
        return
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [m for m in base.modules() if getattr(m, "gradient_checkpointing", False) and hasattr(m, "self_attn")]
    for layer in layers[1::2] if mode == "selective" else ():
        layer.gradient_checkpointing = False


def fuse_layers(model: Any, train: TrainConfig, device: torch.device) -> None:
    """Make the layers fused ones, by `train.fused`; a fall-back is logged with its reason.

    They take over gradient checkpointing. Raises UserError when `train.fused` is on and they do not fit.
    """
    from pipelines.train.fused.layer import fuse

    if train.fused == "on" and train.method == "full":
        raise UserError("train.fused=on trains adapters only, but train.method=full: set train.fused=auto")
    if train.fused == "off" or train.method == "full" or (train.fused == "auto" and device.type == "cpu"):
        return
    reason = fuse(model, train.zero != 3, str(train.gradient_checkpointing))
    if reason and train.fused == "on":
        raise UserError(f"train.fused=on, but {reason}: set train.fused=auto")
    if reason:
        logging.getLogger(__name__).warning("train.fused: the base's own layers run, because %s", reason)
