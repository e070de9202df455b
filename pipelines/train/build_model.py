"""The model that a rank trains: the base, its adapter and where that starts, its decoder layers fused where they fit."""

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
from pipelines.model.lora import attach, trainable
from pipelines.model.lora_init import start_eva, start_loftq, start_pissa
from pipelines.model.supported import check_base
from pipelines.plan.flops import ModelSize
from pipelines.storage import local_base_dir
from pipelines.train.batch import MicroBatch, Row, collate
from pipelines.train.checkpoint.files import TrainingState
from pipelines.train.row_order import RowOrder

EVA_FORWARDS = 32  # packs from which lora.init=eva learns


@dataclass(frozen=True)
class BuiltModel:
    """A model to be trained. `pissa` is the part that PiSSA took from the base, `num_trained` counts parameters."""

    model: Any
    pissa: dict[str, torch.Tensor] | None
    size: ModelSize
    num_trained: int


def build_model(
    recipe: Recipe,
    schedule: RowOrder,
    row_tokens: int,
    rows: Callable[[np.ndarray], Iterator[Row]],
    device: torch.device,
    snapshot: TrainingState | None,
) -> BuiltModel:
    """Load and adapt the base of a resolved recipe; a run that goes on from `snapshot` gets its weights later.

    `rows` gives training rows in an order. Raises UserError for a base or adapter that cannot be had.
    """
    base = load_base(recipe.model, str(device), PACKED)
    check_base(base.config, row_tokens)
    size = ModelSize.of(base)
    checkpoint_gradients(base, str(recipe.train.gradient_checkpointing))
    if recipe.train.method == "full":
        model, pissa = unfreeze(base), None
    else:
        model = attach(base, recipe.lora, recipe.train.seed)
        packs = (collate([row], device) for row in rows(schedule.order(0, 0, 1)[:EVA_FORWARDS]))
        pissa = _start(model, recipe, packs, snapshot)
    fuse_layers(model, recipe.train, device)
    return BuiltModel(
        model, pissa, size, sum(parameter.numel() for parameter in trainable(model).values())
    )


def _start(
    model: Any, recipe: Recipe, packs: Iterator[MicroBatch], snapshot: TrainingState | None
) -> dict[str, torch.Tensor] | None:
    """Put the adapter where `lora.init` says; what PiSSA took from the base."""
    if recipe.lora.init == "pissa":
        return start_pissa(model, snapshot.pissa if snapshot else None)
    if recipe.lora.init == "loftq" and not snapshot:
        start_loftq(model, local_base_dir(recipe.model.base, recipe.model.revision))
    elif recipe.lora.init == "eva" and not snapshot:
        start_eva(model, (_inputs(pack) for pack in packs), EVA_FORWARDS)
    return None


def _inputs(pack: MicroBatch) -> dict[str, Any]:
    return {
        "input_ids": pack.input_ids,
        "position_ids": pack.position_ids,
        "bounds": pack.bounds,
        "use_cache": False,
    }
