"""Which bases are supported."""

from __future__ import annotations

import logging
from typing import Any

from pipelines.core.errors import UserError


def check_base(config: Any, row_tokens: int) -> None:
    """Raise UserError for a base whose attention or head computes what packed training does not; dropout is only noted."""
    window = (
        getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True)
        else None
    )
    if window is not None and window < row_tokens:
        raise UserError(
            f"model.base attends to the last {window} tokens only, but a pack may hold a sample of data.row_tokens="
            f"{row_tokens}: set data.row_tokens={window} or less"
        )
    for key in (
        "logits_scaling",
        "logit_scale",
        "final_logit_softcapping",
        "attn_logit_softcapping",
    ):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UserError(
                f"model.base scales its logits ({key}={getattr(config, key)}), which training here does not know"
            )
    if getattr(config, "attention_dropout", None):
        dropout = config.attention_dropout
        logging.getLogger(__name__).warning(
            "model.base has attention_dropout=%s, which is left out here", dropout
        )
