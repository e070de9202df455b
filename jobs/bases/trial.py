"""Tries a base on a tiny random copy: every cell of its row of the table of supported bases."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.bases.inference_trial import (
    logits_of,
    reference_model,
    try_evaluating,
    try_loading,
    try_merging,
)
from jobs.bases.serving_trial import try_serving
from jobs.bases.tiny_samples import LENGTHS, save_random_adapter
from jobs.bases.training_trial import try_quantization, try_training
from pipelines.config.schema import LoraConfig, ModelConfig
from pipelines.core.errors import UserError, one_line
from pipelines.model.base import meta_model
from pipelines.model.lora import attention_targets
from pipelines.model.published import PublishedBase
from pipelines.model.support_table import COLUMNS, NOT_BUILT, Cell
from pipelines.model.supported import (
    evaluate_refusal,
    load_refusal,
    published_values,
    quantize_refusal,
    sample_limit,
    serve_refusal,
    train_refusal,
)
from pipelines.model.tiny_base import complete_config, save_tiny_base
from pipelines.model.vllm_claims import vllm_cell
from serve_app.engines.protocol import RequestError

_TRIED = ("loads", "packed", "nf4", "fp8", "merges", "evaluates", "served")
_CROSSED = ("packed", "evaluates", "served")
_WINDOW = 12  # tokens, fewer than most samples of a trial have
_RANK = 2
_RECURRENT_TARGETS = ("in_proj", "q_proj", "key")  # of layers without attention


@dataclass(frozen=True)
class BaseRow:
    """A base's cells by column, and the limits within which a `yes` holds."""

    cells: dict[str, Cell]
    limit: str = ""


def base_row(base: PublishedBase) -> BaseRow:
    """Try a base, with samples inside its windows and with samples that cross them.

    Samples that cross a window must be refused or computed as transformers computes them.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    cells = try_base(base)
    cells["vllm"] = vllm_cell(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(base.model_type, ""))
    if cells["loads"].verdict != "yes":
        return BaseRow(cells)
    complete = PublishedBase(base.name, complete_config(base.values).to_dict())
    limits = [sample_limit(complete), "adapters on attention" if complete.num_experts else ""]
    if limits[0]:
        crossed = try_base(base, _WINDOW, _CROSSED)
        cells |= {column: crossed[column] for column in _CROSSED if crossed[column].is_fault}
    return BaseRow(cells, "; ".join(filter(None, limits)))


def try_base(
    base: PublishedBase, window: int | None = None, columns: tuple[str, ...] = _TRIED
) -> dict[str, Cell]:
    """The cells of a base's row, by column.

    With `window` every window of the copy is that many tokens, shorter than its samples. `columns`
    names the cells to try; the others are `not run`.
    """
    cells = {column: Cell("not run") for column in COLUMNS} | {"alone": NOT_BUILT}
    if reason := load_refusal(base):
        return cells | {column: Cell("refused", reason) for column in columns}
    with tempfile.TemporaryDirectory(prefix="loraforge-trial-") as name:
        folder = Path(name)
        try:
            save_tiny_base(base.values, folder / "base", window)
        except UserError as error:
            return cells | {column: Cell("not run", str(error)) for column in columns}
        tried = _try_copy(base, folder, columns)
        return cells | {
            column: replace(cell, reason=_named(cell.reason, folder, base.name))
            for column, cell in tried.items()
        }


def _named(reason: str, folder: Path, name: str) -> str:
    """A reason that names the base and its adapter, not the folders of the trial."""
    reason = reason.replace(str(folder / "base"), name)
    return re.sub(rf"{re.escape(str(folder))}/[\w-]+", "its adapter", reason)


def _try_copy(base: PublishedBase, folder: Path, columns: tuple[str, ...]) -> dict[str, Cell]:
    copy, adapters = folder / "base", [folder / "adapter-0", folder / "adapter-1"]
    try:
        expected = logits_of(reference_model(copy))
    except Exception as error:  # noqa: BLE001 - sizes of the copy that do not fit raise anything
        reason = f"its tiny copy does not run in transformers: {one_line(error, 200)}"
        return dict.fromkeys(columns, Cell("not run", reason))
    cells = {"loads": _guarded(lambda: try_loading(copy, expected))}
    if cells["loads"].verdict != "yes":
        return {column: cells["loads"] for column in columns}
    lora = copy_lora(copy)
    trials: Mapping[str, Callable[[], Cell]] = {
        "packed": lambda: try_training(copy, lora, folder / "trained"),
        "nf4": lambda: try_quantization(copy, lora, "nf4", trains()),
        "fp8": lambda: try_quantization(copy, lora, "fp8", trains()),
        "merges": lambda: try_merging(copy, adapters[0]),
        "evaluates": lambda: try_evaluating(copy, adapters[0]),
        "served": lambda: try_serving(copy, adapters),
    }

    def trains() -> bool:
        return "packed" in cells and cells["packed"].verdict == "yes"

    refusals = {
        "packed": train_refusal(base),
        "nf4": _quantize_refusal(base, "nf4"),
        "fp8": _quantize_refusal(base, "fp8"),
        "evaluates": evaluate_refusal(base, max(LENGTHS)),
        "served": serve_refusal(base),
    }
    try:
        for seed, adapter in enumerate(adapters):
            save_random_adapter(copy, lora, adapter, seed)
    except UserError as error:
        refusals |= dict.fromkeys(("merges", "evaluates", "served"), str(error))
    for column, trial in trials.items():
        if column not in columns:
            continue
        reason = refusals.get(column)
        cells[column] = Cell("refused", reason) if reason else _guarded(trial)
    if "evaluates" in cells and cells["evaluates"].is_fault and not trains():
        cells["evaluates"] = Cell("refused", "it cannot be trained, and only what was is evaluated")
    return cells


def _quantize_refusal(base: PublishedBase, quantization: str) -> str:
    if train_refusal(base) and serve_refusal(base):
        return "it is neither trained nor served"
    return quantize_refusal(base, quantization)


def copy_lora(copy: Path) -> LoraConfig:
    """An adapter on every linear of a dense copy; on the attention of another one.

    PEFT refuses some linears of recurrent layers.
    """
    model = meta_model(ModelConfig(base=str(copy), dtype="fp32"))
    base = published_values(model.config)
    if not base.num_experts and not base.recurrent_layers:
        return LoraConfig(r=_RANK)
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    others = [name for name in _RECURRENT_TARGETS if name in names]
    return LoraConfig(r=_RANK, targets=attention_targets(model) or others[:1])


def _guarded(trial: Callable[[], Cell]) -> Cell:
    """The trial's cell; an error for the user is a refusal, any other error a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return trial()
        except (UserError, RequestError) as error:
            return Cell("refused", getattr(error, "message", str(error)))
        except Exception as error:  # noqa: BLE001 - whatever the product raises is its fault
            return Cell("broken", one_line(f"{type(error).__name__}: {error}", 200))
