"""Memory of a run per worker, and the choice of ZeRO stage, offload and gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.config.recipe import Recipe
from pipelines.config.schema import TrainConfig
from pipelines.core.errors import UserError
from pipelines.layers.install import wants_fused
from pipelines.model.base import default_device
from pipelines.plan.shape import ModelShape, shape_of

if TYPE_CHECKING:
    import torch

_QUANTIZED_BITS = {"nf4": 4.13, "int8": 8.02, "fp8": 16.02}
"""Bits per weight with its quantization constants; fp8 keeps a second, transposed copy."""

_RESERVE = 1.15
"""Factor for fragmentation, the CUDA context and buffers that this estimate leaves out."""

_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class MemoryPlan:
    """One legal choice of the three settings, with the bytes of each part of a worker's memory."""

    zero: int
    offload: str
    gradient_checkpointing: str
    parts: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return int(sum(self.parts.values()) * _RESERVE)


def memory_plan(
    recipe: Recipe,
    shape: ModelShape,
    row_tokens: int,
    world_size: int,
    choice: tuple[int, str, str],
) -> MemoryPlan:
    """The memory of each of `world_size` workers for a (ZeRO stage, offload, checkpointing)."""
    zero, offload, checkpointing = choice
    value = shape.dtype.itemsize
    bits = _QUANTIZED_BITS.get(recipe.model.quantization, 8 * value)
    frozen = (shape.total - shape.linear) * value + shape.linear * bits / 8
    frozen = 0 if recipe.train.method == "full" else frozen
    count = shape.num_trainable_parameters
    weights = (frozen + count * value) / (world_size if zero == 3 else 1)
    gradients = count * value / (world_size if zero >= 2 else 1)
    # Adam's two moments in fp32 and, next to half-precision weights, the fp32 master copy.
    moments = count * (12 if value == 2 else 8) / (world_size if zero >= 1 else 1)
    parts = {
        "weights": 0.0 if offload == "parameters" else weights,
        "gradients": gradients,
        "optimizer": 0.0 if offload != "none" else moments,
        "activations": (_fused_bytes if _fuses(recipe, shape) else _activation_bytes)(
            shape, recipe.train.micro_batch * row_tokens, value, checkpointing
        ),
    }
    return MemoryPlan(
        zero, offload, checkpointing, {name: int(size) for name, size in parts.items()}
    )


def _activation_bytes(shape: ModelShape, tokens: int, value: int, checkpointing: str) -> float:
    """Activations of the base's own layers, with `value` bytes per number.

    A Llama-like layer saves 5 tensors of width h, 3 of q, 2 of kv and 4 of i for its backward. The
    head's logits and their gradient are in fp32.
    """
    widths = 5 * shape.hidden + 3 * shape.queries + 2 * shape.kv + 4 * shape.intermediate
    layer = tokens * value * widths
    saved_layers = {"off": shape.layers, "selective": shape.layers / 2, "full": 1}[checkpointing]
    layer_inputs = tokens * value * shape.hidden * shape.layers
    return layer * saved_layers + layer_inputs + 8.0 * tokens * shape.vocabulary


def _fused_bytes(shape: ModelShape, tokens: int, value: int, checkpointing: str) -> float:
    """Activations of the fused layers, with `value` bytes per number.

    Each layer saves its share of (h, q, kv, i) for its backward; one layer's backward needs further
    buffers, and the head has the logits of one chunk.
    """
    attention, mlp = 2 * (shape.hidden + shape.queries + shape.kv), 2 * shape.intermediate
    saved = {"off": attention + mlp, "selective": attention, "full": shape.hidden}[checkpointing]
    backward = attention + mlp + 3 * shape.intermediate + 2 * shape.hidden
    return tokens * value * (saved * shape.layers + backward + 2 * shape.hidden) + 2.0**28


def _fuses(recipe: Recipe, shape: ModelShape) -> bool:
    """True if the run will use the fused layers, as far as the model without weights shows.

    A trained head is excluded because its logits are not computed in chunks.
    """
    trains_head = "lm_head" in shape.trainable_by_module or bool(recipe.lora.modules_to_save)
    # On the meta device every linear is a plain one, so int8, which does not fuse, is not visible.
    fits = not shape.unfused_reason and recipe.model.quantization != "int8" and not trains_head
    return fits and wants_fused(recipe.train, default_device())


def legal_plans(
    recipe: Recipe, shape: ModelShape, row_tokens: int, world_size: int
) -> Iterator[MemoryPlan]:
    """Every choice that the recipe leaves open, the fastest first.

    No offload comes before offload, then a lower stage before a higher, then less recomputing
    before more.
    """
    train, quantized = recipe.train, recipe.model.quantization != "none"
    modes = (
        ("off", "selective", "full")
        if train.gradient_checkpointing == "auto"
        else (train.gradient_checkpointing,)
    )
    stages = _STAGES if train.zero == "auto" else (train.zero,)
    offloads = ("none", "optimizer", "parameters") if train.offload == "auto" else (train.offload,)
    for offload in offloads:
        for zero in stages:
            for mode in modes:
                # bitsandbytes and float8 weights cannot be sharded; sharding over one worker only
                # costs time, unless parameters are offloaded.
                if zero == 3 and (
                    quantized
                    or (world_size == 1 and train.zero == "auto" and offload != "parameters")
                ):
                    continue
                if (offload == "parameters" and zero != 3) or (
                    offload == "optimizer" and zero == 0
                ):
                    continue
                # The 8-bit optimizers keep their own state on the GPU.
                if train.optimizer != "adamw" and (zero == 3 or offload != "none"):
                    continue
                yield memory_plan(recipe, shape, row_tokens, world_size, (zero, offload, mode))


def choose_plan(
    recipe: Recipe, shape: ModelShape, row_tokens: int, world_size: int, memory: int | None
) -> MemoryPlan:
    """The first legal plan that fits into `memory` bytes per worker; None: unknown, so the first.

    Raises UserError with the smallest plan when none fits.
    """
    plans = list(legal_plans(recipe, shape, row_tokens, world_size))
    for plan in plans:
        if memory is None or plan.bytes <= memory:
            return plan
    assert memory is not None
    smallest = min(plans, key=lambda plan: plan.bytes)
    keys = ("zero", "offload", "gradient_checkpointing")
    fixed = [f"train.{key}" for key in keys if getattr(recipe.train, key) != "auto"]
    advice = f"set {' and '.join(fixed)} to auto, " if fixed else "set "
    raise UserError(
        f"no plan fits {memory / 2**30:.1f} GiB per worker: the smallest takes "
        f"{smallest.bytes / 2**30:.1f} GiB "
        f"(zero {smallest.zero}, offload {smallest.offload}, checkpointing "
        f"{smallest.gradient_checkpointing}); "
        f"{advice}train.micro_batch or data.row_tokens lower, model.quantization=nf4, or more "
        f"workers"
    )


def resolve_auto(recipe: Recipe, row_tokens: int, memory: int | None, world_size: int) -> Recipe:
    """The recipe with every `auto` of zero, offload and gradient_checkpointing replaced.

    The plan is chosen for `memory` bytes per worker. All ranks must pass the same number, or they
    would run different ZeRO stages and wait for each other in collectives.
    """
    train = recipe.train
    if "auto" not in (train.zero, train.offload, train.gradient_checkpointing):
        return recipe
    plan = choose_plan(recipe, shape_of(recipe), row_tokens, world_size, memory)
    choice = {
        "zero": plan.zero,
        "offload": plan.offload,
        "gradient_checkpointing": plan.gradient_checkpointing,
    }
    return recipe.model_copy(update={"train": TrainConfig(**{**train.model_dump(), **choice})})


def device_bytes(device: torch.device) -> int | None:
    """The memory of a GPU; None for the CPU, whose memory other processes share."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
