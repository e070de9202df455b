"""Checks that a base is supported, with the reason if it is not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pipelines.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGIT_FACTORS = (
    "logits_scaling",
    "logit_scale",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)


def check_base(config: Any, row_tokens: int) -> None:
    """Raise UserError for a base that packed training would not compute correctly.

    `config` is the model's configuration, `row_tokens` the length of a pack. Attention dropout is
    only logged: training leaves it out.
    """
    window = (
        getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True)
        else None
    )
    if window is not None and window < row_tokens:
        raise UserError(
            f"model.base attends to the last {window} tokens only, but a pack may contain a sample "
            f"of "
            f"data.row_tokens={row_tokens}: set data.row_tokens={window} or less"
        )
    for key in _LOGIT_FACTORS:
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UserError(
                f"model.base scales its logits ({key}={getattr(config, key)}), which packed "
                f"training "
                "does not support: choose a base without it"
            )
    if getattr(config, "attention_dropout", None):
        logging.getLogger(__name__).warning(
            "model.base has attention_dropout=%s, which training leaves out",
            config.attention_dropout,
        )


def check_fp8(model: PreTrainedModel) -> None:
    """Raise UserError when the model's device or one of its linears cannot multiply in float8."""
    import torch

    from pipelines.layers.fp8 import fp8_unsupported

    reason = fp8_unsupported(model.device)
    for name, module in model.named_modules() if model.device.type == "cuda" else ():
        # torch._scaled_mm requires multiples of 16; a CPU emulates float8 at any width.
        if type(module) is torch.nn.Linear and (
            module.in_features % 16 or module.out_features % 16
        ):
            widths = f"{module.in_features} to {module.out_features}"
            reason = f"{name} maps {widths} values, not multiples of 16"
    if reason:
        raise UserError(f"model.quantization=fp8: {reason}: set model.quantization=none or nf4")
