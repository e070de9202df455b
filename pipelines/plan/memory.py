"""Memory plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.config.recipe import Recipe
from pipelines.config.schema import TrainConfig
from pipelines.core.errors import UserError
from pipelines.layers.families import FUSED_FAMILIES
from pipelines.plan.shape import ModelShape, shape_of

if TYPE_CHECKING:
    import torch


_BITS = {
    "nf4": 4.13,
    "int8": 8.02,
    "fp8": 16.02,
}  # a weight with its quantization constants; fp8 is held twice


_DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


_RESERVE = 1.15  # fragmentation, the CUDA context and what this page leaves out


_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class MemoryPlan:
    """One legal choice and what it takes of each worker's memory, in bytes."""

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
    """The memory that a choice of (ZeRO stage, offload, gradient checkpointing) takes of each of `world_size` workers."""
    zero, offload, checkpointing = choice
    plain = _DTYPE_BYTES[_dtype(recipe)]
    bits = _BITS.get(recipe.model.quantization)
    frozen = (
        shape.total * plain
        if bits is None
        else (shape.total - shape.quantizable) * plain + shape.quantizable * bits / 8
    )
    frozen = 0 if recipe.train.method == "full" else frozen
    count = shape.num_trainable
    split = world_size if zero == 3 else 1
    weights = (frozen + count * plain) / split
    gradients = count * plain / (world_size if zero >= 2 else 1)
    moments = count * (12 if plain == 2 else 8) / (world_size if zero >= 1 else 1)
    parts = {
        "weights": 0.0 if offload == "parameters" else weights,
        "gradients": gradients,
        "optimizer": 0.0 if offload != "none" else moments,
        "activations": (_fused_bytes if _fuses(recipe, shape) else _activation_bytes)(
            shape, recipe.train.micro_batch * row_tokens, plain, checkpointing
        ),
    }
    return MemoryPlan(
        zero, offload, checkpointing, {name: int(size) for name, size in parts.items()}
    )


def _activation_bytes(shape: ModelShape, tokens: int, plain: int, checkpointing: str) -> float:
    """What a llama-like layer keeps for its backward: 5 of width h, 3 of q, 2 of kv, 4 of i; and the head's logits in fp32."""
    layer = (
        tokens
        * plain
        * (5 * shape.hidden + 3 * shape.queries + 2 * shape.kv + 4 * shape.intermediate)
    )
    kept = {"off": shape.layers, "selective": shape.layers / 2, "full": 1}[checkpointing]
    borders = tokens * plain * shape.hidden * shape.layers
    return layer * kept + borders + 8.0 * tokens * shape.vocabulary


def _fused_bytes(shape: ModelShape, tokens: int, plain: int, checkpointing: str) -> float:
    """What the fused layers keep, what one of them holds in its backward besides, and the head's logits of one chunk."""
    attention, mlp = 2 * (shape.hidden + shape.queries + shape.kv), 2 * shape.intermediate
    kept = {"off": attention + mlp, "selective": attention, "full": shape.hidden}[checkpointing]
    at_work = attention + mlp + 3 * shape.intermediate + 2 * shape.hidden
    return tokens * plain * (kept * shape.layers + at_work + 2 * shape.hidden) + 2.0**28


def _fuses(recipe: Recipe, shape: ModelShape) -> bool:
    """Whether the fused layers are to be expected; what only the loaded model can tell is left out."""
    import torch

    from pipelines.layers.kernels import capable

    lora, train = recipe.lora, recipe.train
    if shape.family not in FUSED_FAMILIES or "lm_head" in shape.trainable or lora.modules_to_save:
        return False
    odd = shape.head_size < 32 or shape.head_size & (shape.head_size - 1)
    if torch.cuda.is_available() and (odd or not capable()):
        return False
    fits = train.method == "lora" and not (
        lora.dropout or lora.dora or recipe.model.quantization == "int8"
    )
    return fits and (train.fused == "on" or (train.fused == "auto" and torch.cuda.is_available()))


def legal_plans(
    recipe: Recipe, shape: ModelShape, row_tokens: int, world_size: int
) -> Iterator[MemoryPlan]:
    """Every choice that the recipe leaves open, the fastest first: less recomputing, then a lower stage, then no offload."""
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
                if zero == 3 and (
                    quantized
                    or (world_size == 1 and train.zero == "auto" and offload != "parameters")
                ):
                    continue
                if (offload == "parameters" and zero != 3) or (
                    offload == "optimizer" and zero == 0
                ):
                    continue
                if train.optimizer != "adamw" and (zero == 3 or offload != "none"):
                    continue
                yield memory_plan(recipe, shape, row_tokens, world_size, (zero, offload, mode))


def choose(
    recipe: Recipe, shape: ModelShape, row_tokens: int, world_size: int, memory: int | None
) -> MemoryPlan:
    """The first legal plan that fits into `memory` bytes a worker (None: unknown, so the first).

    Raises UserError when none fits, with the smallest and what it lacks.
    """
    plans = list(legal_plans(recipe, shape, row_tokens, world_size))
    for plan in plans:
        if memory is None or plan.bytes <= memory:
            return plan
    assert memory is not None
    least = min(plans, key=lambda plan: plan.bytes)
    given = {"train.zero": recipe.train.zero, "train.offload": recipe.train.offload}
    given["train.gradient_checkpointing"] = recipe.train.gradient_checkpointing
    fixed = [key for key, value in given.items() if value != "auto"]
    advice = f"set {' and '.join(fixed)} to auto, " if fixed else "set "
    raise UserError(
        f"no plan fits {memory / 2**30:.1f} GiB a worker: the smallest takes {least.bytes / 2**30:.1f} GiB "
        f"(zero {least.zero}, offload {least.offload}, checkpointing {least.gradient_checkpointing}); "
        f"{advice}train.micro_batch or data.row_tokens lower, model.quantization=nf4, or more workers"
    )


def resolved(recipe: Recipe, row_tokens: int, memory: int | None, world_size: int) -> Recipe:
    """The recipe with every `auto` of its training section chosen for `memory` bytes a worker; others stay as given.

    All ranks must pass the same number, or they would run different ZeRO stages and wait for each other.
    """
    train = recipe.train
    if "auto" not in (train.zero, train.offload, train.gradient_checkpointing):
        return recipe
    plan = choose(recipe, shape_of(recipe), row_tokens, world_size, memory)
    choice = {
        "zero": plan.zero,
        "offload": plan.offload,
        "gradient_checkpointing": plan.gradient_checkpointing,
    }
    return recipe.model_copy(update={"train": TrainConfig(**{**train.model_dump(), **choice})})


def device_bytes(device: torch.device) -> int | None:
    """The memory of a GPU; None for the CPU, where other processes share it."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def matmul_flops(shape: ModelShape, tokens: int, recompute: bool, full: bool) -> float:
    """Floating-point operations of one forward and backward: 2 a weight forward, 2 for dx, 2 for dW where it is wanted."""
    return (
        tokens
        * (shape.quantizable + shape.vocabulary * shape.hidden)
        * (4.0 + 2.0 * full + 2.0 * recompute)
    )


def _dtype(recipe: Recipe) -> str:
    import torch

    if recipe.model.dtype != "auto":
        return recipe.model.dtype
    return "bf16" if torch.cuda.is_available() else "fp32"
