"""The train stage: packed rows to verified checkpoints, by workers on Ray Train.

A run's id is the key of its step: the same recipe on the same dataset finds the finished run or
resumes a broken one. The store's own manifests decide where a run resumes, not Ray's bookkeeping.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config.identity import training_identity
from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import PreparedDataset, TrainingRun
from pipelines.core.digests import digest_of, short
from pipelines.core.errors import UserError
from pipelines.steps.inputs import Inputs
from pipelines.steps.step import BuildContext, Step
from pipelines.storage import Artifact, Store, as_user_error, claimed
from pipelines.train.row_order import RowOrder

if TYPE_CHECKING:
    from pipelines.train.row_feed import Feed
    from pipelines.train.worker import WorkerArgs

KIND = "trained"
OpenFeed = Callable[[Path, str], "Feed"]
Fit = Callable[["WorkerArgs"], None]


def train_step(
    inputs: Inputs,
    prepared: Step[PreparedDataset],
    open_feed: OpenFeed,
    check: Callable[[Store, PreparedDataset], None] | None = None,
    fit: Fit | None = None,
) -> Step[TrainingRun]:
    """The step that trains, finds the finished run, or resumes an interrupted one.

    `open_feed(folder, split)` opens the packed rows of a split for a worker, `check(store,
    dataset)` refuses a dataset before anything is trained on it, and `fit` runs the workers (None:
    on Ray Train). Building raises UserError for user errors in the recipe, for a full disk, when
    workers died more often than the recipe allows, and when another process trains the same run.
    """
    return Step(
        name="train",
        noun="training run",
        kind=KIND,
        inputs=(prepared,),
        key=lambda dataset: _key(inputs, dataset),
        build=lambda context, dataset: _build(context, inputs, dataset, open_feed, check, fit),
        load=load_run,
        summary=lambda run: _summary(run, inputs.recipe),
        needs_ray=fit is None,
        check=lambda dataset: _check_before_ray(inputs.recipe, dataset),
    )


def _key(inputs: Inputs, dataset: PreparedDataset) -> str:
    recipe = inputs.recipe
    without_limit = recipe.train.model_copy(update={"max_steps": None})
    num_steps = RowOrder(dataset.train.num_rows, without_limit).num_steps
    literals = {"prepared": dataset.ref.key, "base": inputs.base_fingerprint}
    return digest_of(literals | training_identity(recipe, num_steps))


def _build(
    context: BuildContext,
    inputs: Inputs,
    dataset: PreparedDataset,
    open_feed: OpenFeed,
    check: Callable[[Store, PreparedDataset], None] | None,
    fit: Fit | None,
) -> None:
    from pipelines.train import ray_workers
    from pipelines.train.checkpoint.files import largest_bytes, latest_verified
    from pipelines.train.checkpoint.retention import discard_after
    from pipelines.train.track.proof_log import discard_proof
    from pipelines.train.track.run_progress import RunProgress
    from pipelines.train.worker import WorkerArgs

    recipe, store, progress, run_id = inputs.recipe, context.store, context.progress, context.key
    check_startable(recipe, store)
    if check:
        check(store, dataset)
    for line in recipe.serving_notes():
        progress.note(f"train: {line}")
    parents = {
        "prepared": dataset.ref.digest,
        "base": inputs.base_fingerprint,
        "recipe": recipe.digest,
    }
    folder = run_folder(store, run_id)
    args = WorkerArgs(recipe, store, dataset, run_id, parents, folder, open_feed)
    num_steps = RowOrder(dataset.train.num_rows, recipe.train).num_steps

    def wanted_bytes() -> int:
        return 2 * largest_bytes(store, run_id)

    with (
        as_user_error(store.uri, str(folder), wants_bytes=wanted_bytes),
        claimed(folder, "trains this run"),
    ):
        _discard_foreign_checkpoints(context, dataset)
        resumed_from, damaged = latest_verified(store, run_id)
        for line in damaged:
            progress.note(f"train: checkpoint damaged, {line}")
        discard_after(store, run_id, resumed_from.step if resumed_from else 0)
        if resumed_from:
            progress.note(
                f"train: run {short(run_id)} resumes from step {resumed_from.step} of {num_steps}"
            )
        discard_proof(folder)
        with RunProgress(folder, num_steps, progress), _own_interrupt():
            (fit or ray_workers.fit)(args)
        _write_run(args)


def _discard_foreign_checkpoints(context: BuildContext, dataset: PreparedDataset) -> None:
    """Delete checkpoints of this run that were trained on another build of its dataset."""
    from pipelines.train.checkpoint.files import list_checkpoints
    from pipelines.train.checkpoint.retention import discard_after

    checkpoints = list_checkpoints(context.store, context.key)
    if any(each.ref.parents.get("prepared") != dataset.ref.digest for each in checkpoints):
        context.progress.note(
            f"train: run {short(context.key)} has checkpoints of another build of its dataset; "
            "training starts from step 0"
        )
        discard_after(context.store, context.key, 0)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Restore the handler of Ctrl-C on exit: Ray Train replaces it and does not give it back."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _check_before_ray(recipe: Recipe, dataset: PreparedDataset) -> None:
    """Raise UserError for a dataset that does not fit the recipe or the base."""
    from pipelines.train.base_limits import check_rows

    if Path(dataset.ref.uri).is_dir():  # training refuses datasets on an object store
        check_rows(recipe.model, Path(dataset.ref.uri))
    if recipe.train.patience and not dataset.heldout.num_rows:
        raise UserError(
            f"train.patience={recipe.train.patience} waits for a better held-out loss, and the "
            "dataset has no held-out row: set data.heldout_share above 0, or leave train.patience "
            "empty"
        )


def check_startable(recipe: Recipe, store: Store) -> None:
    """Raise UserError for what would keep the workers from their first step."""
    from pipelines.train.track.trackers import check_trackers

    if not store.is_local:
        raise UserError(
            f"--store {store.uri}: training writes its progress to a folder that all nodes see, "
            "not to an object store yet; give a shared folder (NFS, EFS, Filestore)"
        )
    if recipe.model.dtype == "fp16" and not recipe.resources.gpus_per_worker:
        raise UserError(
            "model.dtype=fp16 trains on a GPU only, and resources.gpus_per_worker is 0: set "
            "model.dtype=bf16 or fp32"
        )
    check_trackers(recipe.train.trackers)


def _write_run(args: WorkerArgs) -> None:
    """Write the finished run's artifact: recipe, metrics, plot, and the remaining checkpoints."""
    from pipelines.report.charts import plot_loss
    from pipelines.train.checkpoint.files import count_trainable_parameters, list_checkpoints
    from pipelines.train.checkpoint.retention import prune
    from pipelines.train.track.metrics_log import read_metrics
    from pipelines.train.track.proof_log import read_proof

    store, run_id, recipe = args.store, args.run_id, args.recipe
    checkpoints = prune(store, run_id, recipe.train.keep)
    last = list_checkpoints(store, run_id)[-1]
    lines = read_metrics(args.folder)
    parameters, saved_bytes = count_trainable_parameters(Path(last.ref.uri))
    for suffix in ("svg", "png"):
        plot_loss(lines, args.folder / f"loss.{suffix}")
    seconds = sum(line["step_s"] for line in lines)
    with store.create_artifact(KIND, run_id, args.parents) as draft:
        (draft.path / "recipe.yaml").write_text(recipe.to_yaml())
        shutil.copy(args.folder / "metrics.jsonl", draft.path)
        shutil.copy(args.folder / "loss.svg", draft.path)
        names = {"heldout_loss": "heldout_loss", "train_loss": "loss"}
        metrics = {name: last.metrics[key] for name, key in names.items() if key in last.metrics}
        metrics |= {"seconds": seconds, "tokens": sum(line["tokens"] for line in lines)}
        num_gpus = recipe.resources.gpus_per_worker * recipe.resources.max_workers
        draft.metadata = {
            "run_id": run_id,
            "num_steps": last.step,
            "checkpoints": [store.noun_to_json(checkpoint) for checkpoint in checkpoints],
            "metrics": metrics,
            "parameters": parameters,
            "num_trainable_parameters": sum(parameters.values()),
            "saved_bytes": saved_bytes,
            "gpu_seconds": seconds * num_gpus,
            "save_every": recipe.train.save_every,
            "base_proof": read_proof(args.folder),
        }


def load_run(store: Store, artifact: Artifact) -> TrainingRun:
    """The noun of a finished run's artifact."""
    ref = store.noun_to_json(artifact.ref)
    return store.noun_from_json(TrainingRun, {**artifact.metadata, "ref": ref})


def run_folder(store: Store, run_id: str) -> Path:
    """The local folder with a run's checkpoints, metrics and logs."""
    root = store.uri if store.is_local else store.uri.split("://", 1)[1]
    return Path(root) / "runs" / short(run_id)


def _summary(run: TrainingRun, recipe: Recipe) -> str:
    best = run.best
    loss = best.metrics.get("heldout_loss", math.nan)
    verdict = (
        f"held-out loss {loss:.4f} at step {best.step}"
        if math.isfinite(loss)
        else f"no held-out loss, so the last checkpoint (step {best.step}) counts as the best"
    )
    steps = ", ".join(str(checkpoint.step) for checkpoint in run.checkpoints)
    return (
        f"{run.num_steps} steps, {verdict}; checkpoints kept: {steps}; "
        f"{run.num_trainable_parameters:,} parameters trained, {run.saved_bytes:,} bytes saved"
    )
