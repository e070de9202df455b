"""Builds the model that a rank trains: base, adapter with its initial weights, fused layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.config.recipe import Recipe
from pipelines.layers.attention import PACKED
from pipelines.layers.install import checkpoint_gradients, fuse_layers
from pipelines.model.base import load_base
from pipelines.model.full_finetune import unfreeze
from pipelines.model.lora import attach, trainable_parameters
from pipelines.model.lora_init import init_eva, init_loftq, init_pissa
from pipelines.model.supported import check_base
from pipelines.plan.shape import ModelShape, shape_of_base
from pipelines.storage import local_base_dir
from pipelines.train.batch import Row, collate
from pipelines.train.checkpoint.files import TrainingState
from pipelines.train.row_order import RowOrder

EVA_FORWARDS = 32  # packed rows from which lora.init=eva computes its directions


@dataclass(frozen=True)
class BuiltModel:
    """A model ready for training.

    `pissa` holds the principal part that lora.init=pissa moved out of the base, by parameter name;
    else None. `num_trainable_parameters` is counted before ZeRO shards anything.
    """

    model: Any
    pissa: dict[str, torch.Tensor] | None
    shape: ModelShape
    num_trainable_parameters: int


def build_model(
    recipe: Recipe,
    row_order: RowOrder,
    row_tokens: int,
    read_rows: Callable[[np.ndarray], Iterator[Row]],
    device: torch.device,
    start_state: TrainingState | None,
) -> BuiltModel:
    """Load the base of a resolved recipe and attach the adapter.

    `read_rows` yields training rows by index, for lora.init=eva. A run that resumes from
    `start_state` gets its trainable weights later, from `Engine.restore`; only PiSSA's part of the
    base is needed here. Raises UserError for a base or adapter that cannot be loaded or is not
    supported.
    """
    base = load_base(recipe.model, str(device), PACKED)
    check_base(base, row_tokens)
    shape = shape_of_base(base)
    checkpoint_gradients(base, str(recipe.train.gradient_checkpointing))
    if recipe.train.method == "full":
        model, pissa = unfreeze(base), None
    else:
        model = attach(base, recipe.lora, recipe.train.seed)
        first_rows = row_order.rows_of_rank(0, rank=0, world_size=1)[:EVA_FORWARDS]
        pissa = _initialize(model, recipe, read_rows(first_rows), device, start_state)
    fuse_layers(model, recipe.train, device)
    num_trainable = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    return BuiltModel(model, pissa, shape, num_trainable)


def _initialize(
    model: Any,
    recipe: Recipe,
    rows: Iterator[Row],
    device: torch.device,
    start_state: TrainingState | None,
) -> dict[str, torch.Tensor] | None:
    """Give the adapter the initial weights of `lora.init`; returns PiSSA's part of the base."""
    init = recipe.lora.init
    if init == "pissa":
        return init_pissa(model, start_state.pissa if start_state else None)
    if init == "loftq" and not start_state:
        init_loftq(model, local_base_dir(recipe.model.base, recipe.model.revision))
    elif init == "eva" and not start_state:
        init_eva(model, (_forward_arguments(row, device) for row in rows), EVA_FORWARDS)
    return None


def _forward_arguments(row: Row, device: torch.device) -> dict[str, Any]:
    batch = collate([row], device)
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "bounds": batch.bounds,
        "use_cache": False,
    }
