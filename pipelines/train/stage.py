"""The training stage: a run found, made by workers on Ray Train or gone on with where it was, and its artifact.

The run's name is the digest of everything that shapes its result, so the same command finds, continues or reuses it.
Our own manifests decide where a run resumes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import Checkpoint, PreparedDataset, TrainingRun, from_json, to_json
from pipelines.core.digests import digest_of, short
from pipelines.core.errors import UserError
from pipelines.core.progress import Progress
from pipelines.model.base import base_fingerprint
from pipelines.report.charts import plot_loss
from pipelines.storage import Artifact, Store, as_user_error, claimed
from pipelines.train.checkpoint.files import (
    checkpoint_kind,
    count_trained_parameters,
    largest_bytes,
    latest_verified,
    list_checkpoints,
)
from pipelines.train.checkpoint.retention import discard_after, heldout_loss_of, prune
from pipelines.train.ray_workers import fit
from pipelines.train.row_order import RowOrder
from pipelines.train.track.metrics_log import read_metrics
from pipelines.train.track.progress import RunProgress
from pipelines.train.track.trackers import check_trackers
from pipelines.train.worker import Feed, WorkerArgs

KIND = "trained"
_UNSHAPING = {
    "max_failures",
    "max_preemptions",
    "hang_timeout_s",
    "trackers",
    "record_samples",
    "keep",
}


def run_id_of(recipe: Recipe, prepared: PreparedDataset, fingerprint: str) -> str:
    """Digest of what shapes the result: data, base, adapter and training sections; not the resources."""
    model = recipe.model.model_dump(exclude={"base", "revision"})
    sections = {
        "model": model,
        "lora": recipe.lora.model_dump(),
        "train": recipe.train.model_dump(exclude=_UNSHAPING),
    }
    return digest_of({"prepared": prepared.ref.digest, "base": fingerprint, **sections})


def train(
    recipe: Recipe,
    store: Store,
    prepared: PreparedDataset,
    open_feed: Callable[[Path, str], Feed],
    progress: Progress,
) -> TrainingRun:
    """Train, or find the finished run, or go on with a broken one; Ray must be initialised.

    Raises UserError for what the recipe got wrong, for a full disk, when workers died more often than it allows, and
    when another process trains the same run.
    """
    fingerprint = base_fingerprint(recipe.model.base, recipe.model.revision)
    run_id = run_id_of(recipe, prepared, fingerprint)
    finished = store.find(KIND, run_id)
    if finished:
        run = run_from(finished)
        progress.note(f"train: run {short(run_id)} found, {_summary(run)}")
        return run
    check_startable(recipe, store)
    if recipe.train.patience and not prepared.heldout.num_rows:
        raise UserError(
            f"train.patience={recipe.train.patience} waits for a better held-out loss, and the dataset holds no held-out row: "
            "set data.heldout_share above 0, or train.patience empty"
        )
    for line in recipe.serving_notes():
        progress.note(f"train: {line}")
    parents = {"prepared": prepared.ref.digest, "base": fingerprint, "recipe": recipe.digest}
    folder = _run_folder(store, run_id)
    plan = WorkerArgs(recipe, store, prepared, run_id, parents, folder, open_feed)
    schedule = RowOrder(prepared.train.num_rows, recipe.train)
    with (
        as_user_error(store.uri, str(folder), wants_bytes=lambda: 2 * largest_bytes(store, run_id)),
        claimed(folder, "trains this run"),
    ):
        started_at, damaged = latest_verified(store, run_id)
        for line in damaged:
            progress.note(f"train: checkpoint damaged, {line}")
        discard_after(store, run_id, started_at.step if started_at else 0)
        if started_at:
            progress.note(
                f"train: run {short(run_id)} goes on from step {started_at.step} of {schedule.num_steps}"
            )
        with RunProgress(folder, schedule.num_steps, progress):
            fit(plan)
        run = _finish(plan)
    progress.note(f"train: run {short(run_id)}, {_summary(run)}")
    return run


def check_startable(recipe: Recipe, store: Store) -> None:
    """Raise UserError for what would keep the workers from their first step, as far as recipe and store show it."""
    if not store.is_local:
        raise UserError(
            f"--store {store.uri}: training writes its progress to a folder that all nodes see, not to an object store yet; "
            "give a shared folder (NFS, EFS, Filestore)"
        )
    if recipe.model.dtype == "fp16" and not recipe.resources.gpus_per_worker:
        raise UserError(
            "model.dtype=fp16 trains on a GPU only, and resources.gpus_per_worker is 0: set model.dtype=bf16 or fp32"
        )
    check_trackers(recipe.train.trackers)


def _finish(plan: WorkerArgs) -> TrainingRun:
    """Write the finished run's artifact: recipe, metrics, plot, and which checkpoints were kept."""
    store, run_id = plan.store, plan.run_id
    kept = prune(store, run_id, plan.recipe.train.keep)
    last = list_checkpoints(store, run_id)[-1]
    lines = read_metrics(plan.folder)
    trained, saved_bytes = count_trained_parameters(Path(last.ref.uri))
    for suffix in ("svg", "png"):
        plot_loss(lines, plan.folder / f"loss.{suffix}")
    with store.create_artifact(KIND, run_id, plan.parents) as draft:
        (draft.path / "recipe.yaml").write_text(plan.recipe.to_yaml())
        shutil.copy(plan.folder / "metrics.jsonl", draft.path)
        shutil.copy(plan.folder / "loss.svg", draft.path)
        named = {"heldout_loss": "heldout_loss", "train_loss": "loss"}
        summary = {name: last.metrics[key] for name, key in named.items() if key in last.metrics}
        summary |= {
            "seconds": sum(line["step_s"] for line in lines),
            "tokens": sum(line["tokens"] for line in lines),
        }
        draft.metadata = {
            "run_id": run_id,
            "num_steps": last.step,
            "checkpoints": [to_json(checkpoint) for checkpoint in kept],
            "metrics": summary,
            "parameters": {"trained": trained, "saved_bytes": saved_bytes},
        }
    finished = store.find(KIND, run_id)
    assert finished is not None
    return run_from(finished)


def find_run(recipe: Recipe, store: Store, prepared: PreparedDataset) -> TrainingRun | None:
    """The finished run of this recipe on this dataset, or None."""
    fingerprint = base_fingerprint(recipe.model.base, recipe.model.revision)
    finished = store.find(KIND, run_id_of(recipe, prepared, fingerprint))
    return run_from(finished) if finished else None


def _summary(run: TrainingRun) -> str:
    best = run.best
    loss = heldout_loss_of(best)
    said = (
        f"held-out loss {loss:.4f}"
        if math.isfinite(loss)
        else "no held-out loss; the last one is kept,"
    )
    trained, saved_bytes = count_trained_parameters(Path(best.ref.uri))
    what = f"{sum(trained.values()):,} parameters trained, {saved_bytes:,} bytes saved"
    return f"{run.num_steps} steps, {said} at step {best.step} -> {best.ref.name}; {what}"


def run_from(artifact: Artifact) -> TrainingRun:
    """The noun of a finished run's artifact."""
    facts = artifact.metadata
    checkpoints = tuple(from_json(Checkpoint, c) for c in facts["checkpoints"])
    return TrainingRun(
        artifact.ref, facts["run_id"], facts["num_steps"], checkpoints, facts["metrics"]
    )


def _run_folder(store: Store, run_id: str) -> Path:
    return Path(store.uri if store.is_local else store.uri.split("://", 1)[1]) / checkpoint_kind(
        run_id
    )
