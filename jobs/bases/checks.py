"""Checks of a recipe's base before anything starts, from its configuration alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.config.recipe import Recipe
from pipelines.config.schema import LoraConfig, ModelConfig
from pipelines.core.errors import UserError
from pipelines.model.published import PublishedBase, published_base
from pipelines.model.supported import (
    adapter_refusal,
    evaluate_refusal,
    load_refusal,
    quantize_refusal,
    refuse,
    serve_refusal,
    train_refusal,
)

_RANK = 2


def check_loads(model: ModelConfig) -> None:
    """Raise UserError for a base that no stage can use. Imports neither torch nor transformers."""
    base = published_base(model)
    refuse(base, load_refusal(base), quantize_refusal(base, model.quantization))


def check_serves(recipe: Recipe) -> None:
    """Raise UserError for a base that the engine cannot serve, as far as its config.json shows."""
    base = published_base(recipe.model)
    tokens = min(recipe.serve.max_model_tokens, base.max_tokens or recipe.serve.max_model_tokens)
    refuse(base, serve_refusal(base, tokens))


def training_notes(recipe: Recipe) -> list[str]:
    """Lines on what training leaves out of a base, without a fault."""
    num_experts = published_base(recipe.model).num_experts
    if not num_experts:
        return []
    line = (
        f"train: model.base routes tokens among {num_experts} experts: experts and router stay as "
        "they are, and the loss that balances them is left out"
    )
    return [line]


def check_evaluates(recipe: Recipe) -> None:
    """Raise UserError for a base whose scores would depend on which samples share a batch."""
    base = published_base(recipe.model)
    refuse(base, evaluate_refusal(base, recipe.data.row_tokens + recipe.eval.max_new_tokens))


def check_trains(recipe: Recipe) -> None:
    """Raise UserError for a base that the recipe cannot train.

    After the facts of its configuration, a tiny random copy of the base is proven as the run proves
    the base itself before its first step. Where no such copy can be built, the run's proof decides.
    """
    model, lora, tokens = recipe.model, recipe.lora, recipe.data.row_tokens
    base = published_base(model)
    refuse(base, load_refusal(base), adapter_refusal(base, lora, recipe.train.method))
    refuse(base, train_refusal(base, tokens))
    with tempfile.TemporaryDirectory(prefix="loraforge-copy-") as folder, _without_bars():
        complete = _save_copy(base, Path(folder))
        if complete is None:
            return
        refuse(complete, adapter_refusal(complete, lora, recipe.train.method))
        refuse(complete, train_refusal(complete, tokens))
        adapter = LoraConfig(r=_RANK, targets=lora.targets)
        _prove(Path(folder), model.base, adapter if recipe.train.method == "lora" else None)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Inside, transformers draws no progress bars: nobody waits for a copy of a few kilobytes."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _save_copy(base: PublishedBase, folder: Path) -> PublishedBase | None:
    """The base with the defaults of its class, after a copy was written; None if none can be."""
    from pipelines.model.tiny_base import complete_config, save_tiny_base

    try:
        save_tiny_base(base.values, folder)
    except UserError:
        return None
    return PublishedBase(base.name, complete_config(base.values).to_dict())


def _prove(copy: Path, name: str, lora: LoraConfig | None) -> None:
    """Raise UserError, with the base's name, where the proof of its copy does not hold."""
    from jobs.bases.training_trial import prove_copy

    try:
        prove_copy(ModelConfig(base=str(copy), dtype="fp32"), lora)
    except UserError as error:
        raise UserError(str(error).replace(str(copy), name)) from error
    except Exception:  # noqa: BLE001 - sizes of the copy may not fit; the proof of the run decides
        return
