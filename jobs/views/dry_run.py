"""`loraforge train --dry-run`: rows, parameters, memory and time of a run, without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from jobs.bases.checks import check_trains, training_notes
from jobs.views.dry_run_proof import proof_line
from pipelines.chat import ChatRenderer
from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.data.first_look import RejectReasons, check_first_rows
from pipelines.data.origins import Origins
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.stage import prepare_step
from pipelines.data.tokenize import ChunkTokenizer
from pipelines.data.tokenized_table import CHUNK_END, HELDOUT, TRAIN
from pipelines.model.base import resolve_dtype
from pipelines.plan.flops import RECOMPUTED_SHARE, step_flops
from pipelines.plan.memory import MemoryPlan, choose_plan, device_bytes
from pipelines.plan.shape import ModelShape, shape_of
from pipelines.sources.source_files import find_files
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.storage import Store
from pipelines.train.base_limits import check_rows, read_base_limits
from pipelines.train.row_order import RowOrder
from pipelines.train.stage import check_startable
from pipelines.train.track.throughput import matmul_rate

NUM_ROWS = 8


def show_dry_run(inputs: Inputs, store: Store, console: Console) -> None:
    """Print the parts of `dry_run`, each as soon as it is known."""
    for part in dry_run(inputs, store):
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def dry_run(inputs: Inputs, store: Store) -> Iterator[Table | str]:
    """Tables and lines that describe the run. Writes nothing and needs no Ray.

    Raises UserError for everything that the run would refuse before its first step: sources,
    tokenizer, base, targets, and sizes that fit no worker.
    """
    import torch

    recipe = inputs.recipe
    check_startable(recipe, store)
    rows = _first_rows(recipe, inputs.renderer)
    yield _rows_table(rows, inputs.renderer)
    samples = [np.array(ids, np.int32) for ids in rows["input_ids"].to_pylist() if ids]
    _check_limits(recipe, samples)
    check_trains(recipe)
    shape = shape_of(recipe)
    yield _parameters_table(shape)
    device = torch.device(
        "cuda" if torch.cuda.is_available() and recipe.resources.gpus_per_worker else "cpu"
    )
    plan = choose_plan(
        recipe, shape, recipe.data.row_tokens, recipe.resources.max_workers, device_bytes(device)
    )
    yield _memory_table(plan)
    dataset = Runner(store, SILENT).find(prepare_step(inputs))
    rate = matmul_rate(device, resolve_dtype(recipe.model, device.type))
    yield _time_line(recipe, dataset, shape, plan, rate)
    folder = store.local_dir(dataset.ref) if dataset else None
    if folder:
        check_rows(recipe.model, folder)
    yield proof_line(recipe, shape, device, rate, folder, [s for s in samples if len(s) > 1])
    yield from training_notes(recipe)
    yield from recipe.serving_notes()


def _rows_table(rows: pa.Table, renderer: ChatRenderer) -> Table:
    table = Table(
        "row",
        "tokens",
        "loss tokens",
        "stop token has loss",
        "ends with",
        title="first rows",
        title_justify="left",
    )
    for number, row in enumerate(rows.to_pylist(), 1):
        ids, weights = row["input_ids"] or [], row["loss_weights"] or []
        if row["reason"] or not ids:
            table.add_row(str(number), "-", "-", "-", f"left out: {row['reason']}")
            continue
        trained = [token for token, weight in zip(ids, weights, strict=True) if weight]
        stop, end = "no" if row["num_missing_stop"] else "yes", repr(renderer.decode(trained[-12:]))
        table.add_row(str(number), f"{len(ids):,}", f"{len(trained):,}", stop, end)
    return table


def _first_rows(recipe: Recipe, renderer: ChatRenderer) -> pa.Table:
    """The first NUM_ROWS rows. Raises UserError with the reasons when no row at all can be used."""
    files = find_files(recipe.data.sources)
    check_first_rows(files, recipe.data.max_rejects_share)
    tokenizer = ChunkTokenizer(renderer, recipe.data)
    first: pa.Table | None = None
    reasons, num_rows, chunks = RejectReasons(), 0, cut_chunks(files)
    origins = Origins(chunks)
    for number, chunk in enumerate(chunks):
        for table in tokenizer.tables(number, chunk):
            if table["fate"][0].as_py() == CHUNK_END:
                origins.end(number, table["row"][0].as_py())
                continue
            first = table.slice(0, NUM_ROWS) if first is None else first
            if {TRAIN, HELDOUT} & set(table["fate"].to_pylist()):
                return first
            num_rows += len(table)
            for row in table.select(["row", "reason"]).to_pylist():
                reasons.add(row["reason"], origins.name(number, row["row"]))
    most = list(reasons.counts().items())[:3]
    worst = "; ".join(f"{count:,} x {reason}" for reason, count in most)
    raise UserError(f"data.sources: none of {num_rows:,} rows can be used: {worst}")


def _parameters_table(shape: ModelShape) -> Table:
    table = Table("module", "trainable", "share", title="parameters", title_justify="left")
    for name, count in shape.trainable_by_module.items():
        table.add_row(name, f"{count:,}", f"{count / shape.total:.4%}")
    total = shape.num_trainable_parameters
    table.add_row("all", f"{total:,} of {shape.total:,}", f"{total / shape.total:.4%}")
    table.add_row("saved", f"{shape.saved_bytes:,} bytes ({shape.saved_bytes / 1e6:,.1f} MB)", "")
    return table


def _memory_table(plan: MemoryPlan) -> Table:
    head = (
        f"memory a worker: zero {plan.zero}, offload {plan.offload}, checkpointing "
        f"{plan.gradient_checkpointing}"
    )
    table = Table("part", "GiB", title=head, title_justify="left", min_width=len(head))
    for name, size in plan.parts.items():
        table.add_row(name, f"{size / 2**30:,.2f}")
    table.add_row("all, with a reserve", f"{plan.bytes / 2**30:,.2f}")
    return table


def _check_limits(recipe: Recipe, samples: Sequence[np.ndarray]) -> None:
    """Raise UserError if one of these samples exceeds the base's limits."""
    if samples:
        largest = max(int(sample.max()) for sample in samples)
        read_base_limits(recipe.model).check(largest, max(map(len, samples)), "data.sources")


def _time_line(
    recipe: Recipe,
    prepared: PreparedDataset | None,
    shape: ModelShape,
    plan: MemoryPlan,
    rate: float,
) -> str:
    tokens, full = recipe.train.global_batch * recipe.data.row_tokens, recipe.train.method == "full"
    # Sample lengths and label positions are unknown here: no attention, and the head on all tokens.
    recomputed = RECOMPUTED_SHARE[plan.gradient_checkpointing]
    step = step_flops(shape, tokens, tokens, 0, full, recomputed)
    seconds = step / (rate * recipe.resources.max_workers)
    estimate = (
        f"matrix products alone, at {rate / 1e12:,.2f} TFLOP/s here, take {seconds:,.2f} s per step"
    )
    if prepared is None:
        return f"{estimate}; the number of steps is known after `loraforge prepare`"
    steps = RowOrder(prepared.train.num_rows, recipe.train).num_steps
    return (
        f"{estimate}, {steps * seconds:,.0f} s for {steps:,} steps; starting workers comes on top"
    )
