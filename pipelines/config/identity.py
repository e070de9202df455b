"""Identity: which recipe values decide a training run or an evaluation, in one normal form.

Two recipes whose identities are equal share one artifact. Normalising may use other literals of
the recipe (`resources.gpus_per_worker` decides the meaning of `auto`) and results of earlier
steps (the number of steps), but never the machine and never an outcome.
"""

from __future__ import annotations

from typing import Any

from pipelines.config.recipe import Recipe
from pipelines.config.schema import TARGET_PRESETS, LoraConfig, TrainConfig

# These keys decide how a run survives and reports, not its weights.
_RUN_CONTROL = {
    "nonfinite",
    "max_failures",
    "max_preemptions",
    "hang_timeout_s",
    "trackers",
    "record_samples",
    "keep",
}
_NF4_DETAILS = {"double_quantization", "compute_dtype", "storage_dtype"}


def training_identity(recipe: Recipe, num_steps: int | None) -> dict[str, Any]:
    """The values of `model`, `lora` and `train` that decide a training run's weights.

    `num_steps` is the number of steps that `train.epochs` gives without `train.max_steps`; None
    if it is not known yet. The base's fingerprint and the dataset's digest are the caller's to
    add: `model.base` and `model.revision` are left out, because equal weights may be in two
    places.
    """
    identity = {"model": _model(recipe), "train": _train(recipe, num_steps)}
    if recipe.train.method != "full":
        identity["lora"] = _lora(recipe.lora)
    return identity


def evaluation_identity(recipe: Recipe) -> dict[str, Any]:
    """The values of `eval`, `model` and `resources` that decide the scores of given checkpoints."""
    return {
        "model": _model(recipe),
        "gpu": recipe.resources.gpus_per_worker > 0,
        "eval": recipe.eval.model_dump(mode="json", exclude={"actors"}),
    }


def _model(recipe: Recipe) -> dict[str, Any]:
    """The section without the base's place, `auto` resolved, and nf4's details only where nf4 is
    on.
    """
    model = recipe.model.model_dump(mode="json", exclude={"base", "revision"})
    if model["dtype"] == "auto":
        model["dtype"] = "bf16" if recipe.resources.gpus_per_worker else "fp32"
    for key in _NF4_DETAILS:
        if model["quantization"] != "nf4":
            del model[key]
        elif model[key] == "auto":
            model[key] = model["dtype"]
    return model


def _lora(lora: LoraConfig) -> dict[str, Any]:
    """The section with target presets as module names, and lists of modules as sets."""
    targets = lora.targets
    if isinstance(targets, str):
        targets = TARGET_PRESETS.get(targets, targets)
    return lora.model_dump(mode="json") | {
        "targets": targets if isinstance(targets, str) else sorted(set(targets)),
        "modules_to_save": sorted(set(lora.modules_to_save)),
    }


def _train(recipe: Recipe, num_steps: int | None) -> dict[str, Any]:
    train = recipe.train
    identity = train.model_dump(mode="json", exclude=_RUN_CONTROL)
    if num_steps is not None and train.max_steps is not None and train.max_steps >= num_steps:
        identity["max_steps"] = None
    if train.fused == "auto" and (not recipe.resources.gpus_per_worker or train.method == "full"):
        identity["fused"] = "off"
    if not _save_every_matters(train):
        del identity["save_every"]
    return identity


def _save_every_matters(train: TrainConfig) -> bool:
    """With patience it decides when a run stops; with several kept checkpoints, which steps those
    are.
    """
    return train.patience is not None or train.keep > 1
