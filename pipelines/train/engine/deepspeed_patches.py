"""Replacements of DeepSpeed methods, each with the behaviour that it replaces and why.

Written for the DeepSpeed of constraints.txt. When you raise it, compare each function here with the
method that it replaces; tests/parity/test_train_reference.py covers all ZeRO stages.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed with the accelerator of `device`."""
    # DeepSpeed picks its accelerator once, at import: CUDA wherever a driver is visible.
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    # On CPU, `deepspeed.comm` compiles a C++ shared-memory all-reduce while it sets up gloo. That
    # needs a compiler on every node and delays each start; gloo's own all-reduce is enough here.
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class ClipWithoutZero:
    """Gradient clipping at ZeRO stage 0; replaces `DeepSpeedEngine.clip_fp32_gradients`.

    DeepSpeed's method clips and drops the norm, and it steps even if a gradient is infinite or NaN.
    This one keeps the norm in `norm`. If the norm is not finite it removes all gradients, so that
    Adam's step changes neither weights nor moments.
    """

    def __init__(self, engine: Any, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._engine, self._parameters = engine, parameters
        self.norm = 0.0
        engine.clip_fp32_gradients = self

    def __call__(self) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._engine.gradient_clipping())
        self.norm = float(norm)
        if not math.isfinite(self.norm):
            for parameter in self._parameters:
                parameter.grad = None


def patch_zero_1_and_2(optimizer: Any, device: torch.device, offloads: bool) -> None:
    """Remove per-tensor work from a step of DeepSpeed's ZeRO-1/2 optimizer.

    An adapter has hundreds of small tensors, so DeepSpeed's loops over them launch thousands of
    kernels. With offloading the gradients are in CPU memory in another layout: there its methods
    stay.
    """
    if not offloads:
        optimizer.get_grad_norm_direct = partial(_grad_norm, device)
        # `has_overflow` looks for inf and NaN in every gradient and waits for an all-reduce. The
        # norm is then infinite or NaN as well, and `step` skips on `is_invalid_grad_norm` all the
        # same.
        optimizer.has_overflow = lambda partition_gradients=True: False
    # After each step DeepSpeed points every parameter at its slice of the flat buffer again. The
    # constructor has done so already and nothing here moves that buffer.
    optimizer._update_model_bit16_weights = lambda group: None


def _grad_norm(
    device: torch.device, gradients: list[torch.Tensor], params: Any, norm_type: int = 2
) -> torch.Tensor:
    """The global L2 norm, or -1 if it is not finite.

    Replaces `DeepSpeedZeroOptimizer.get_grad_norm_direct`. DeepSpeed's method launches about ten
    kernels for each tensor. `_foreach_norm` launches a few for all. -1 is DeepSpeed's own sentinel:
    without it the clipping would divide by an infinite norm.
    """
    # `_zero_padding` marks the padding at the end of a partition; DeepSpeed excludes it, too.
    own = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
    dtype = torch.float32 if device.type == "cuda" else torch.float64
    norms = (
        cast(Any, torch)._foreach_norm(own, norm_type, dtype=dtype)
        if own  # a rank may own no part of a group
        else [torch.zeros((), device=device)]
    )
    total = torch.stack(norms).square().sum().float()
    dist.all_reduce(total)
    norm = total.sqrt()
    # `where` instead of `if`: the host does not wait for the device here.
    return torch.where(norm.isfinite(), norm, -torch.ones_like(norm))


def gather_by_layer(model: Any, zero: dict[str, Any]) -> None:
    """Under ZeRO-3, gather a decoder layer's weights in one call and prefetch the next layer's.

    DeepSpeed gathers module by module, so a layer costs many small all-gathers. Changes `zero`, the
    section "zero_optimization" of its configuration. Call it before `deepspeed.initialize`.
    """
    from deepspeed.utils import set_z3_leaf_modules

    layers = [m for m in model.modules() if hasattr(m, "self_attn") and hasattr(m, "mlp")]
    if not layers:
        return
    set_z3_leaf_modules(model, [type(layers[0])])
    # DeepSpeed releases a module's weights once the gradients of its inputs exist. The first
    # layer's input has none, so DeepSpeed would release the layer before its backward has begun.
    model.enable_input_require_grads()
    size = sum(p.numel() for p in layers[0].parameters())
    zero |= {
        "overlap_comm": True,
        "stage3_prefetch_bucket_size": 2 * size,
        "stage3_max_live_parameters": 6 * size,
    }
