"""The engine of the training loop: DeepSpeed, ZeRO stages 0 to 3."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from pipelines.config.schema import TrainConfig
from pipelines.core.errors import UserError
from pipelines.layers.transfer import to_device
from pipelines.model.lora import trainable_parameters
from pipelines.train.batch import MicroBatch
from pipelines.train.engine.adam_state import MOMENTS, AdamState
from pipelines.train.engine.deepspeed_config import zero_settings
from pipelines.train.engine.deepspeed_patches import (
    ClipWithoutZero,
    gather_by_layer,
    import_deepspeed,
    patch_zero_1_and_2,
)
from pipelines.train.engine.protocol import OptimizerState
from pipelines.train.loss import PackedLoss
from pipelines.train.optimizer.build import build_optimizer

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedEngine:
    """Trains `model`'s trainable parameters under ZeRO 0 to 3.

    The frozen base is replicated under ZeRO 0 to 2 and sharded under ZeRO 3. `b_ratio` is LoRA+'s
    learning-rate ratio of the B matrices. Raises UserError for fp16 on CPU.
    """

    def __init__(
        self, model: Any, config: TrainConfig, device: torch.device, b_ratio: float = 1.0
    ) -> None:
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.scale_lowered = False
        deepspeed = import_deepspeed(device)
        named = trainable_parameters(model)
        self._names = {parameter: name for name, parameter in named.items()}
        num_trainable = sum(p.numel() for p in named.values())
        settings = zero_settings(config, _compute_dtype(model), num_trainable)
        if settings["fp16"]["enabled"] and device.type == "cpu":
            raise UserError("model.dtype=fp16 trains on a GPU only: set model.dtype=bf16 or fp32")
        stage = settings["zero_optimization"]["stage"]
        if stage == 3:
            gather_by_layer(model, settings["zero_optimization"])
        self._engine, *_ = deepspeed.initialize(
            model=PackedLoss(model),
            optimizer=build_optimizer(named, config, b_ratio),
            config=settings,
        )
        self._clip = ClipWithoutZero(self._engine, list(self._names)) if stage == 0 else None
        if stage in (1, 2):
            patch_zero_1_and_2(self._engine.optimizer, device, config.offload != "none")
        self._engine.train()  # `from_pretrained` returns a base in eval mode
        self._adam = AdamState(self._engine.optimizer, is_bnb=config.optimizer != "adamw")
        self._adam.reset(0)

    def accumulate(self, batch: MicroBatch, global_weight: torch.Tensor) -> torch.Tensor:
        """Add this micro-batch's part of the step's gradient; returns its summed loss, detached.

        The host does not wait for the device.
        """
        # `train()` visits thousands of modules, and only held-out scoring leaves the mode.
        if not self._engine.module.training:
            self._engine.train()
        loss = self._engine(batch)
        # DeepSpeed averages gradients over the ranks; the loss is a mean over the tokens of all
        # ranks.
        scale = (self.world_size / global_weight).to(loss.dtype)
        self._engine.backward(loss * scale, scale_wrt_gas=False)
        return loss.detach()

    def step(self, lr: float) -> float:
        """Reduce, clip and update at rate `lr`, zero the gradients.

        Returns the global gradient norm before clipping. A gradient that is not finite is dropped:
        the weights stay as they are and the norm is infinite.
        """
        optimizer = self._engine.optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr * group["ratio"]
        loss_scale = self._scaler().get("cur_scale", 1.0)
        self._engine.step()
        if getattr(optimizer, "overflow", False):
            # At a loss scale of 1 it is the gradient itself that is not finite.
            self.scale_lowered = loss_scale > 1.0
            return float("inf")
        self.scale_lowered = False
        return self._clip.norm if self._clip else float(self._engine.get_global_grad_norm())

    @property
    def packed_loss(self) -> PackedLoss:
        """The module that DeepSpeed trains. Under ZeRO-3 its hooks gather the weights."""
        return self._engine.module

    @torch.no_grad()
    def loss_sum(self, batch: MicroBatch) -> float:
        """The summed loss without gradients and dropout. Collective under ZeRO-3 only."""
        self._engine.eval()
        return float(self._engine(batch))

    def sum_over_ranks(self, values: Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Each value summed over the ranks, float64 on the device. The host does not wait."""
        if not isinstance(values, torch.Tensor):
            values = to_device(torch.tensor(values, dtype=torch.float64), self.device)
        summed = values.to(torch.float64, copy=True)
        dist.all_reduce(summed)
        return summed

    def gather(self) -> OptimizerState:
        """The weights and moments of all ranks, fp32 on CPU. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        weights, moments = {}, {key: {} for key in MOMENTS}
        with self._adam.as_fp32(write=False):
            for parameter, name in self._names.items():
                # DeepSpeed returns None for a parameter that it does not partition (no ZeRO).
                full = safe_get_full_fp32_param(parameter)
                weights[name] = _cpu_fp32(parameter if full is None else full)
                for key in MOMENTS:
                    full = safe_get_full_optimizer_state(parameter, key)
                    moment = self._adam.moment(parameter, key) if full is None else full
                    moments[key][name] = _cpu_fp32(moment)
        return OptimizerState(
            weights,
            moments["exp_avg"],
            moments["exp_avg_sq"],
            step=self._adam.num_updates,
            scaler=self._scaler(),
        )

    def restore(self, state: OptimizerState) -> None:
        """Put weights, moments, Adam's step and the loss scale back. Collective."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._adam.reset(state.step)
        with self._adam.as_fp32(write=True):
            for parameter, name in self._names.items():
                moments = {key: getattr(state, key)[name] for key in MOMENTS}
                # ZeRO-3 marks its parameters with `ds_id`, ZeRO-1 and 2 with `_hp_mapping`.
                if not (hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")):
                    parameter.data.copy_(state.weights[name])
                    for key, moment in moments.items():
                        self._adam.moment(parameter, key).copy_(moment)
                    continue
                safe_set_full_fp32_param(parameter, state.weights[name].to(self.device))
                for key, moment in moments.items():
                    safe_set_full_optimizer_state(parameter, moment.to(self.device), key)
                # The calls above set the fp32 copies only, not the weights that the forward uses.
                with self.gathered([parameter]):
                    parameter.data.copy_(state.weights[name])
        for key, value in state.scaler.items():
            setattr(self._engine.optimizer.loss_scaler, key, value)

    @contextmanager
    def gathered(self, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
        """Inside, these parameters have their full shape on every rank.

        Under ZeRO-3 collective, and rank 0's changes reach all ranks at the end. Without ZeRO-3 it
        does nothing.
        """
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        with GatheredParameters(parameters, modifier_rank=0):
            yield

    def _scaler(self) -> dict[str, float]:
        """The state of fp16's loss scaling; empty for other dtypes."""
        if not self._engine.fp16_enabled():
            return {}
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return {key: getattr(scaler, key) for key in _SCALER if hasattr(scaler, key)}


def _compute_dtype(model: Any) -> torch.dtype:
    """The dtype of the activations. A quantized base keeps its embedding in that dtype."""
    return model.get_input_embeddings().weight.dtype


def _cpu_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().cpu().clone()
