"""A record of a model's sizes, from which memory plans, FLOPs and the dry run are computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipelines.config.recipe import Recipe
from pipelines.model.base import meta_model
from pipelines.model.full_finetune import unfreeze
from pipelines.model.lora import attach, trainable_parameters

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a causal language model; those of its adapter are filled in by `shape_of`.

    `total`, `linear` and `head` count weights: all of them, those of the linears without the head,
    and those of the head. `queries` and `kv` are widths: heads times `head_size`.
    """

    total: int
    linear: int
    head: int
    hidden: int
    queries: int
    kv: int
    intermediate: int
    layers: int
    vocabulary: int
    head_size: int
    dtype: torch.dtype
    """The dtype of the embeddings, in which a quantized base computes, too."""

    trainable_by_module: Mapping[str, int] = field(default_factory=dict)
    """Trainable parameters by the last part of the module's name, such as q_proj."""

    saved_bytes: int = 0
    """Bytes of the tensors in a checkpoint's adapter, or in its full model."""

    unfused_reason: str = ""
    """The reason why the fused layers do not fit the adapted model here; empty if they fit."""

    @property
    def num_trainable_parameters(self) -> int:
        return sum(self.trainable_by_module.values())


def shape_of_base(base: Any) -> ModelShape:
    """The sizes of a model without adapters, loaded in any quantization or on the meta device."""
    head, embeddings, config = (
        base.get_output_embeddings(),
        base.get_input_embeddings(),
        base.config,
    )
    linears = {
        module: module.in_features * module.out_features
        for module in base.modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features")
    }
    # A 4-bit weight is a packed tensor of half the elements, so linears count by their widths.
    in_linears = {id(module.weight) for module in linears}
    other = sum(p.numel() for p in base.parameters() if id(p) not in in_linears)
    total, num_head = other + sum(linears.values()), linears.pop(head, 0)
    heads = getattr(config, "num_attention_heads", 0)
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return ModelShape(
        total=total,
        linear=sum(linears.values()),
        head=num_head,
        hidden=config.hidden_size,
        queries=heads * head_size,
        kv=getattr(config, "num_key_value_heads", heads) * head_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        layers=getattr(config, "num_hidden_layers", 0),
        vocabulary=config.vocab_size,
        head_size=head_size,
        dtype=embeddings.weight.dtype,
    )


def shape_of(recipe: Recipe) -> ModelShape:
    """The sizes of the recipe's base with its adapter, on the meta device: needs no weights.

    Raises UserError for a base without configuration and for an adapter that does not fit it.
    """
    import torch

    from pipelines.layers.families import unfused_reason

    model: Any = meta_model(recipe.model)
    base, full = shape_of_base(model), recipe.train.method == "full"
    adapted = unfreeze(model) if full else attach(model, recipe.lora, seed=0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return replace(
        base,
        trainable_by_module=count_by_module(adapted),
        saved_bytes=_saved_bytes(recipe, adapted),
        unfused_reason="every weight trains" if full else unfused_reason(adapted, device),
    )


def _saved_bytes(recipe: Recipe, model: torch.nn.Module) -> int:
    """Adapters are saved in fp32, PiSSA's with twice the rank; a full model in its own dtype."""
    parameters = trainable_parameters(model)
    if recipe.train.method == "full":
        return sum(p.numel() * p.element_size() for p in parameters.values())
    factor = 2 if recipe.lora.init == "pissa" else 1
    return sum(
        4 * p.numel() * (factor if ".lora_A." in name or ".lora_B." in name else 1)
        for name, p in parameters.items()
    )


def count_by_module(model: torch.nn.Module) -> dict[str, int]:
    """Trainable parameters by the last part of their module's name, in the model's order.

    Exact under ZeRO-3 too, where the local shard is empty.
    """
    counts: Counter[str] = Counter()
    for name, parameter in trainable_parameters(model).items():
        counts[owner_of(name)] += getattr(parameter, "ds_shape", parameter.shape).numel()
    return dict(counts)


def owner_of(parameter: str) -> str:
    """The last part of the name of the module that a parameter belongs to, such as q_proj."""
    for mark in (".lora_", ".modules_to_save."):
        if mark in parameter:
            return parameter.split(mark)[0].rsplit(".", 1)[-1]
    return parameter.rsplit(".", 2)[-2]
