"""DeepSpeed's configuration for the section `train` of a recipe."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.config.schema import TrainConfig

_DEFAULT_BUCKET = 500_000_000  # DeepSpeed's own


def zero_settings(config: TrainConfig, dtype: torch.dtype, num_trainable: int) -> dict[str, Any]:
    """The configuration for activations of `dtype` and `num_trainable` parameters.

    `config` is resolved: no value is "auto".
    """
    assert isinstance(config.zero, int) and config.offload != "auto", "resolve auto first"
    # The fp32 master weights of half precision must be readable by parameter name for checkpoints.
    # DeepSpeed offers that from ZeRO-1 on; stage 0's FP16_Optimizer does not.
    stage = config.zero if dtype == torch.float32 else max(1, config.zero)
    # DeepSpeed allocates the reduce bucket at its full size, so it need not be larger than the
    # gradients.
    bucket = min(_DEFAULT_BUCKET, num_trainable)
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": bucket}
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # The loop forms the micro-batches and scales the loss. Unmanaged accumulation makes each
        # `step` the boundary, however many micro-batches came before it.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.clip_norm,
        # Accept bitsandbytes' optimizers under ZeRO, and torch's AdamW with offloading, where
        # DeepSpeed otherwise insists on its DeepSpeedCPUAdam, which every node would have to
        # compile.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "steps_per_print": 1 << 30,
    }
