"""The proof of the base in a dry run: made where the weights are there and fit, else the reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from pipelines.config.recipe import Recipe
from pipelines.packed.feed import RowFeed
from pipelines.plan.memory import device_bytes, resolve_auto
from pipelines.plan.shape import ModelShape
from pipelines.storage import local_base_dir

if TYPE_CHECKING:
    import torch

_MAX_SECONDS = 120.0
_PASSES = 12  # over the samples' tokens, counted generously: the layers without fusing are slow


def proof_line(
    recipe: Recipe,
    shape: ModelShape,
    device: torch.device,
    rate: float,
    dataset: Path | None,
    first_samples: Sequence[np.ndarray],
) -> str:
    """Prove the base on samples of the prepared dataset in the folder `dataset`, else on these.

    `rate` is the device's matmul rate in operations per second. Raises UserError if the proof does
    not hold.
    """
    from pipelines.train.proof_samples import choose_samples

    samples = sorted(first_samples, key=len, reverse=True)
    if dataset is not None:
        samples = choose_samples(RowFeed(dataset, "train"), recipe.data.row_tokens)
    reason = _reason_against(recipe, shape, device, rate, samples)
    if reason:
        return f"base proof: left to the run, because {reason}"
    return _prove(recipe, device, samples)


def _reason_against(
    recipe: Recipe,
    shape: ModelShape,
    device: torch.device,
    rate: float,
    samples: Sequence[np.ndarray],
) -> str:
    import torch

    folder = local_base_dir(recipe.model.base, recipe.model.revision, weights=False)
    if not _has_weights(folder):
        return f"{folder} has no complete weights"
    if not samples:
        return "no row has two tokens"
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    # A quantized base is loaded in its own precision first, one tensor at a time; a fourth more is
    # for the largest tensor and the activations.
    needed = int(1.25 * shape.total * shape.dtype.itemsize)
    if needed > free:
        return f"the base needs {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free"
    seconds = _PASSES * 2 * shape.total * sum(map(len, samples)) / rate
    return f"it would take about {seconds:,.0f} s here" if seconds > _MAX_SECONDS else ""


def _has_weights(folder: Path) -> bool:
    """Whether every safetensors file of the base is there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    return all((folder / name).is_file() for name in _shards(index))


def _shards(index: Path) -> set[str]:
    return set(json.loads(index.read_text()).get("weight_map", {}).values())


def _prove(recipe: Recipe, device: torch.device, samples: Sequence[np.ndarray]) -> str:
    from pipelines.train.base_proof import prove_base
    from pipelines.train.build_model import build_model
    from pipelines.train.loss import PackedLoss
    from pipelines.train.proof_errors import base_errors_as_user_errors, check_proof
    from pipelines.train.row_order import RowOrder

    # Other initial values need the dataset, or minutes of linear algebra.
    plain = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"init": "zero"})})
    row_tokens = recipe.data.row_tokens
    resolved = resolve_auto(plain, row_tokens, device_bytes(device), recipe.resources.max_workers)
    with base_errors_as_user_errors(recipe.model.base):
        model = build_model(
            resolved, RowOrder(1, resolved.train), row_tokens, lambda _: iter(()), device, None
        ).model
        proof = prove_base(PackedLoss(model), samples, device)
        check_proof(proof, recipe.model.base, model)
    return f"base proof: {proof}"
