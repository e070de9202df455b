"""Sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.config.recipe import Recipe
from pipelines.model.base import meta_model
from pipelines.model.full_finetune import unfreeze
from pipelines.model.lora import attach, trainable_parameters

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelShape:
    """The sizes that a plan is made from. `trainable` counts parameters by module name, such as q_proj."""

    total: int
    quantizable: int
    trainable: Mapping[str, int]
    hidden: int
    queries: int
    kv: int
    intermediate: int
    layers: int
    vocabulary: int
    family: str = ""
    head_size: int = 0
    saved_bytes: int = 0  # of the tensors that a checkpoint's adapter, or its whole model, holds

    @property
    def num_trainable(self) -> int:
        return sum(self.trainable.values())


def shape_of(recipe: Recipe) -> ModelShape:
    """The sizes of the recipe's base with its adapter on it, on the meta device."""
    model: Any = meta_model(recipe.model)
    config = model.config
    total = sum(p.numel() for p in model.parameters())
    embedded = {
        id(m.weight): m.weight.numel()
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    sizes = (
        config.hidden_size,
        heads * head_size,
        config.num_key_value_heads * head_size,
        config.intermediate_size,
    )
    adapted = (
        unfreeze(model) if recipe.train.method == "full" else attach(model, recipe.lora, seed=0)
    )
    counts = trainable_table(adapted)
    return ModelShape(
        total,
        total - sum(embedded.values()),
        counts,
        *sizes,
        config.num_hidden_layers,
        config.vocab_size,
        config.model_type,
        head_size,
        _saved_bytes(recipe, adapted),
    )


def _saved_bytes(recipe: Recipe, model: torch.nn.Module) -> int:
    """An adapter is saved in fp32, A and B of PiSSA with twice the rank; a model that trained whole in its own dtype."""
    held = trainable_parameters(model)
    if recipe.train.method == "full":
        return sum(parameter.numel() * parameter.element_size() for parameter in held.values())
    doubled = recipe.lora.init == "pissa"
    return sum(4 * p.numel() * (2 if doubled and _is_lora(name) else 1) for name, p in held.items())


def _is_lora(parameter: str) -> bool:
    return ".lora_A." in parameter or ".lora_B." in parameter


def trainable_table(model: torch.nn.Module) -> dict[str, int]:
    """Trainable parameters by the name of the module that they belong to, in the model's order; exact under ZeRO too."""
    counts: Counter[str] = Counter()
    for name, parameter in trainable_parameters(model).items():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        counts[owner_of(name)] += shape.numel()
    return dict(counts)


def owner_of(parameter: str) -> str:
    """The last name of the module that a parameter belongs to, such as q_proj."""
    for mark in (".lora_", ".modules_to_save."):
        if mark in parameter:
            return parameter.split(mark)[0].rsplit(".", 1)[-1]
    return parameter.rsplit(".", 2)[-2]
