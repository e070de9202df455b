"""DeepSpeed ZeRO behind a small protocol: gradients in, an optimizer step out, state gathered and put back whole.

DeepSpeed averages gradients over the ranks. The loop's loss is a sum divided by the step's global number of loss
tokens, so each micro-batch's loss is multiplied by the number of ranks to undo the mean.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from pipelines.model.lora import trainable
from pipelines.recipe import TrainConfig
from pipelines.train.batch import MicroBatch
from pipelines.train.loss import PackedLoss
from pipelines.train.optim import build_optimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class OptimizerState:
    """The adapter's fp32 weights and Adam moments by parameter name, whole and free of any world size; on CPU."""

    weights: dict[str, torch.Tensor]
    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]
    step: int


class Engine(Protocol):
    """What the loop needs of a distribution strategy. `gather` and `restore` are collective: every rank calls them."""

    rank: int
    world_size: int
    device: torch.device

    def accumulate(self, batch: MicroBatch, global_loss_tokens: float) -> float: ...

    def step(self, lr: float) -> float: ...

    def loss_sum(self, batch: MicroBatch) -> float: ...

    def sum_over_ranks(self, *values: float) -> list[float]: ...

    def gather(self) -> OptimizerState: ...

    def restore(self, state: OptimizerState) -> None: ...


class DeepSpeedEngine:
    """ZeRO 0 to 3 over the adapter's parameters; the frozen base is replicated (0 to 2) or sharded (3)."""

    def __init__(self, model: Any, config: TrainConfig, device: torch.device) -> None:
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        deepspeed = _import_deepspeed(device)
        self._names = {parameter: name for name, parameter in trainable(model).items()}
        optimizer = build_optimizer(list(self._names), config)
        loss = PackedLoss(model)
        self._engine, *_ = deepspeed.initialize(
            model=loss, optimizer=optimizer, config=_settings(config, next(model.parameters()).dtype)
        )

    def accumulate(self, batch: MicroBatch, global_loss_tokens: float) -> float:
        """Add this micro-batch's share of the step's gradient; returns its summed loss."""
        self._engine.train()
        loss = self._engine(batch)
        self._engine.backward(loss * (self.world_size / global_loss_tokens), scale_wrt_gas=False)
        return float(loss.detach())

    def step(self, lr: float) -> float:
        """Reduce, clip, update at rate `lr`, zero the gradients; returns the global gradient norm before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)

    @torch.no_grad()
    def loss_sum(self, batch: MicroBatch) -> float:
        """Summed loss without gradients, dropout off."""
        self._engine.eval()
        return float(self._engine(batch))

    def sum_over_ranks(self, *values: float) -> list[float]:
        """Each value summed over the ranks, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def gather(self) -> OptimizerState:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        weights, moments = {}, {key: {} for key in _MOMENTS}
        for parameter, name in self._names.items():
            full = safe_get_full_fp32_param(parameter)
            weights[name] = (parameter if full is None else full).detach().float().cpu().clone()
            for key in _MOMENTS:
                moments[key][name] = self._moment(parameter, key, safe_get_full_optimizer_state)
        return OptimizerState(weights, moments["exp_avg"], moments["exp_avg_sq"], self._adam_steps())

    def restore(self, state: OptimizerState) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._create_adam_state(state.step)
        for parameter, name in self._names.items():
            if not (hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")):
                parameter.data.copy_(state.weights[name])
                held = self._adam_state()[parameter]
                for key in _MOMENTS:
                    held[key].copy_(getattr(state, key)[name])
                continue
            safe_set_full_fp32_param(parameter, state.weights[name].to(self.device))
            for key in _MOMENTS:
                safe_set_full_optimizer_state(parameter, getattr(state, key)[name].to(self.device), key)
            self._set_compute_weight(parameter, state.weights[name])

    def _set_compute_weight(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
        if not hasattr(parameter, "ds_id"):
            parameter.data.copy_(value)
            return
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)

    def _moment(self, parameter: torch.nn.Parameter, key: str, whole: Any) -> torch.Tensor:
        if not self._adam_state():
            return torch.zeros(getattr(parameter, "ds_shape", parameter.shape))
        full = whole(parameter, key)
        return (self._adam_state()[parameter][key] if full is None else full).detach().float().cpu().clone()

    def _adam(self) -> torch.optim.Optimizer:
        wrapped = self._engine.optimizer
        return getattr(wrapped, "optimizer", wrapped)

    def _adam_state(self) -> Any:
        return self._adam().state

    def _adam_steps(self) -> int:
        return max((int(held["step"]) for held in self._adam_state().values()), default=0)

    def _create_adam_state(self, step: int) -> None:
        """Adam makes its state in its first step; make it empty instead, counted to `step`."""
        wrapped = self._engine.optimizer
        flats = getattr(wrapped, "fp32_partitioned_groups_flat", None)  # ZeRO-3 keeps them out of the parameter groups
        for flat in flats or [flat for group in self._adam().param_groups for flat in group["params"]]:
            held = self._adam().state[flat]
            held["step"] = torch.tensor(float(step))
            for key in _MOMENTS:
                held[key] = torch.zeros_like(flat, memory_format=torch.preserve_format)
        if hasattr(wrapped, "_lazy_init_hp_params_optimizer_state"):
            wrapped._lazy_init_hp_params_optimizer_state()  # else DeepSpeed links the moments in its first step only


def _settings(config: TrainConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": config.zero, "overlap_comm": False},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "steps_per_print": 1 << 30,
    }


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed with the accelerator of `device`; on CPU over gloo, without compiling its shared-memory kernels."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
