"""DeepSpeed's settings for a recipe's training section."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.config.schema import TrainConfig


def zero_settings(config: TrainConfig, dtype: torch.dtype, num_trainable: int) -> dict[str, Any]:
    """The dictionary of a run whose activations have this dtype. In half precision stage 0 becomes 1."""
    assert isinstance(config.zero, int) and config.offload != "auto", "the plan resolves auto"
    stage = config.zero if dtype == torch.float32 else max(1, config.zero)
    # The bucket is allocated whole: as large as the gradients, not DeepSpeed's 500 million values.
    bucket = min(500_000_000, num_trainable)
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": bucket}
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "steps_per_print": 1 << 30,
    }
