"""DeepSpeed as an engine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist

from pipelines.config.schema import TrainConfig
from pipelines.core.errors import UserError
from pipelines.layers.transfer import to_device
from pipelines.model.lora import trainable
from pipelines.train.batch import MicroBatch
from pipelines.train.engine.deepspeed_config import zero_settings
from pipelines.train.engine.protocol import OptimizerState
from pipelines.train.loss import PackedLoss
from pipelines.train.optimizer.bnb_adam import read_moments, write_moments
from pipelines.train.optimizer.build import build_optimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")


_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedEngine:
    """ZeRO 0 to 3 over the trained parameters; the frozen base is replicated (0 to 2) or sharded (3).

    `scale_lowered` says that the last step was left out only because fp16's loss scale was too high, as it is at first.
    """

    def __init__(
        self, model: Any, config: TrainConfig, device: torch.device, b_ratio: float = 1.0
    ) -> None:
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.scale_lowered = False
        deepspeed = _import_deepspeed(device)
        named = trainable(model)
        self._names = {parameter: name for name, parameter in named.items()}
        optimizer = build_optimizer(named, config, b_ratio)
        settings = zero_settings(
            config, _compute_dtype(model), sum(p.numel() for p in named.values())
        )
        self.zero = settings["zero_optimization"]["stage"]
        if settings["fp16"]["enabled"] and device.type == "cpu":
            raise UserError("model.dtype=fp16 trains on a GPU only: set model.dtype=bf16 or fp32")
        if self.zero == 3:
            _gather_by_layer(model, settings["zero_optimization"])
        self._engine, *_ = deepspeed.initialize(
            model=PackedLoss(model), optimizer=optimizer, config=settings
        )
        self._plain_norm, self._quantized = 0.0, config.optimizer != "adamw"
        if self.zero == 0:
            self._engine.clip_fp32_gradients = self._clip_plain
        elif self.zero < 3 and config.offload == "none":
            self._engine.optimizer.get_grad_norm_direct = self._norm_at_once
            self._engine.optimizer.has_overflow = lambda partition_gradients=True: (
                False
            )  # the norm shows it
        if self.zero in (1, 2):
            # After each step it makes every parameter a view of the flat buffer, which it has been since the start.
            self._engine.optimizer._update_model_bit16_weights = lambda group: None
        self._engine.train()  # the base comes in eval mode
        # DeepSpeed links the moments in its first step, and misses those of a second parameter group.
        self._create_adam_state(0)

    def accumulate(self, batch: MicroBatch, global_loss_tokens: torch.Tensor) -> torch.Tensor:
        """Add this micro-batch's share of the step's gradient; returns its summed loss, without waiting for it."""
        if not self._engine.module.training:  # it visits thousands of modules
            self._engine.train()
        loss = self._engine(batch)
        self._engine.backward(
            loss * (self.world_size / global_loss_tokens).to(loss.dtype), scale_wrt_gas=False
        )
        return loss.detach()

    def step(self, lr: float) -> float:
        """Reduce, clip, update at rate `lr`, zero the gradients; returns the global gradient norm before clipping.

        A gradient that is not finite changes nothing, is dropped, and gives a norm of infinity.
        """
        wrapped = self._engine.optimizer
        for group in wrapped.param_groups:
            group["lr"] = lr * group["ratio"]
        before = self._scaler().get("cur_scale", 1.0)
        self._engine.step()
        if getattr(wrapped, "overflow", False):
            self.scale_lowered = before > 1.0
            return float("inf")
        self.scale_lowered = False
        return self._plain_norm if self.zero == 0 else float(self._engine.get_global_grad_norm())

    def _clip_plain(self) -> None:
        """DeepSpeed's clipping without ZeRO, which neither keeps the norm nor leaves out what is not finite."""
        norm = torch.nn.utils.clip_grad_norm_(list(self._names), self._engine.gradient_clipping())
        self._plain_norm = float(norm)
        for parameter in self._names if not math.isfinite(self._plain_norm) else ():
            parameter.grad = None

    def _norm_at_once(
        self, gradients: list[torch.Tensor], params: Any, norm_type: int = 2
    ) -> torch.Tensor:
        """The global norm, -1 when not finite, as DeepSpeed wants it, which launches ten kernels a tensor and waits."""
        held = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
        kind = torch.float32 if self.device.type == "cuda" else torch.float64
        norms = (
            cast(Any, torch)._foreach_norm(held, norm_type, dtype=kind)
            if held
            else [torch.zeros((), device=self.device)]
        )
        total = torch.stack(norms).square().sum().float()
        dist.all_reduce(total)
        norm = total.sqrt()
        return torch.where(norm.isfinite(), norm, -torch.ones_like(norm))

    @torch.no_grad()
    def loss_sum(self, batch: MicroBatch) -> float:
        """Summed loss without gradients, dropout off. Collective under ZeRO-3 only."""
        self._engine.eval()
        return float(self._engine(batch))

    def sum_over_ranks(self, values: Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Each value summed over the ranks, float64 on the device; it is not waited for."""
        if not isinstance(values, torch.Tensor):
            values = to_device(torch.tensor(values, dtype=torch.float64), self.device)
        summed = values.to(torch.float64, copy=True)
        dist.all_reduce(summed)
        return summed

    def gather(self) -> OptimizerState:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        weights, moments = {}, {key: {} for key in _MOMENTS}
        with self._readable_moments(write=False):
            for parameter, name in self._names.items():
                full = safe_get_full_fp32_param(parameter)
                weights[name] = (parameter if full is None else full).detach().float().cpu().clone()
                for key in _MOMENTS:
                    moments[key][name] = self._moment(parameter, key, safe_get_full_optimizer_state)
        return OptimizerState(
            weights, moments["exp_avg"], moments["exp_avg_sq"], self._adam_steps(), self._scaler()
        )

    def restore(self, state: OptimizerState) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._create_adam_state(state.step)
        with self._readable_moments(write=True):
            for parameter, name in self._names.items():
                if not (hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")):
                    parameter.data.copy_(state.weights[name])
                    held = self._adam_state()[parameter]
                    for key in _MOMENTS:
                        held[key].copy_(getattr(state, key)[name])
                    continue
                safe_set_full_fp32_param(parameter, state.weights[name].to(self.device))
                for key in _MOMENTS:
                    safe_set_full_optimizer_state(
                        parameter, getattr(state, key)[name].to(self.device), key
                    )
                with self.whole([parameter]):
                    parameter.data.copy_(state.weights[name])
        for key, value in state.scaler.items():
            setattr(self._engine.optimizer.loss_scaler, key, value)

    @contextmanager
    def _readable_moments(self, write: bool) -> Iterator[None]:
        """Inside, bitsandbytes' moments lie beside its own state in fp32, as torch names them, where DeepSpeed finds them."""
        if not self._quantized:
            yield
            return
        states = list(self._adam_state().values())
        for held in states:
            held |= read_moments(held)
        self._link_moments()
        yield
        for held in states:
            moments = {key: held.pop(key) for key in _MOMENTS}
            if write:
                write_moments(held, moments)
        self._link_moments()

    def _link_moments(self) -> None:
        wrapped = self._engine.optimizer
        if hasattr(wrapped, "_lazy_init_hp_params_optimizer_state"):
            wrapped._hp_optimizer_states_linked = False
            wrapped._lazy_init_hp_params_optimizer_state()

    @contextmanager
    def whole(self, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
        """Inside, these weights are whole; what rank 0 writes is under ZeRO-3 every rank's afterwards. Collective there."""
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        with GatheredParameters(
            parameters, modifier_rank=0
        ):  # which leaves parameters that are whole as they are
            yield

    def _moment(self, parameter: torch.nn.Parameter, key: str, whole: Any) -> torch.Tensor:
        full = whole(parameter, key)
        return (
            (self._adam_state()[parameter][key] if full is None else full)
            .detach()
            .float()
            .cpu()
            .clone()
        )

    def _scaler(self) -> dict[str, float]:
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return (
            {key: getattr(scaler, key) for key in _SCALER if hasattr(scaler, key)}
            if self._engine.fp16_enabled()
            else {}
        )

    def _adam(self) -> torch.optim.Optimizer:
        wrapped = self._engine.optimizer
        return getattr(wrapped, "optimizer", wrapped)

    def _adam_state(self) -> Any:
        return self._adam().state

    def _adam_steps(self) -> int:
        return max((int(held["step"]) for held in self._adam_state().values()), default=0)

    def _create_adam_state(self, step: int) -> None:
        """Adam makes its state in its first step; make it empty here instead, or empty what is there; counted to `step`."""
        wrapped, adam = self._engine.optimizer, self._adam()
        flats = getattr(
            wrapped, "fp32_partitioned_groups_flat", None
        )  # ZeRO-3 keeps them out of the parameter groups
        for g, group in enumerate(adam.param_groups):
            for p, flat in enumerate(group["params"] if flats is None else flats if g == 0 else ()):
                held = adam.state[flat]
                if self._quantized:
                    held.clear()
                    cast(Any, adam).init_state(group, flat, g, p)
                    held["step"] = step
                    continue
                held["step"] = torch.tensor(
                    float(step), device=flat.device if flat.is_cuda else None
                )
                for key in _MOMENTS:
                    held[key] = torch.zeros_like(flat, memory_format=torch.preserve_format)
        self._link_moments()  # else DeepSpeed links the moments in its first step only, and to the old ones after a resume


def _compute_dtype(model: Any) -> torch.dtype:
    """The dtype of the activations: that of the base's plain weights, whatever holds quantized ones."""
    return model.get_input_embeddings().weight.dtype


def _gather_by_layer(model: Any, zero: dict[str, Any]) -> None:
    """Under ZeRO-3 bring a decoder layer's weights with one call, and those of the next while this one computes."""
    from deepspeed.utils import set_z3_leaf_modules

    layers = [m for m in model.modules() if hasattr(m, "self_attn") and hasattr(m, "mlp")]
    if not layers:
        return
    set_z3_leaf_modules(model, [type(layers[0])])
    # A module whose input has no gradient is taken to be done before its backward has begun: the first layer would lose
    # its weights just then.
    model.enable_input_require_grads()
    size = sum(p.numel() for p in layers[0].parameters())
    zero |= {
        "overlap_comm": True,
        "stage3_prefetch_bucket_size": 2 * size,
        "stage3_max_live_parameters": 6 * size,
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
