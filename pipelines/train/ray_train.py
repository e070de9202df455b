"""The training stage on Ray Train: N workers run the loop, rank 0 writes, and a killed run goes on where it was.

The run's name is the digest of everything that shapes its result, so the same command finds, continues or reuses it.
Our own manifests decide where a run resumes; Ray's snapshot of its bookkeeping is only a cache and is dropped at start.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.contracts import (
    Checkpoint,
    PreparedDataset,
    Progress,
    TrainingRun,
    UserError,
    digest_of,
    from_json,
    short,
    to_json,
)
from pipelines.model.base import base_fingerprint
from pipelines.recipe import Recipe
from pipelines.storage import Artifact, Store, claimed, explaining
from pipelines.train.checkpoint import (
    checkpoint_kind,
    clear_way,
    heldout_of,
    largest_bytes,
    list_checkpoints,
    newest_sound,
    sweep,
    trained_in,
)
from pipelines.train.failures import FailureLog, reason_of, was_preempted
from pipelines.train.follow import Following
from pipelines.train.loop import Schedule
from pipelines.train.metrics import plot_loss, read_metrics
from pipelines.train.trackers import check_trackers
from pipelines.train.worker import Feed, WorkerPlan, train_rank

KIND = "trained"
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_UNSHAPING = {"max_failures", "max_preemptions", "hang_timeout_s", "trackers", "record_samples", "keep"}


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
    recipe: Recipe, store: Store, prepared: PreparedDataset, open_feed: Callable[[Path, str], Feed], progress: Progress
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
    plan = WorkerPlan(recipe, store, prepared, run_id, parents, folder, open_feed)
    schedule = Schedule(prepared.train.num_rows, recipe.train)
    with (
        explaining(store.uri, str(folder), wants_bytes=lambda: 2 * largest_bytes(store, run_id)),
        claimed(folder, "trains this run"),
    ):
        started_at, damaged = newest_sound(store, run_id)
        for line in damaged:
            progress.note(f"train: checkpoint damaged, {line}")
        clear_way(store, run_id, started_at.step if started_at else 0)
        if started_at:
            progress.note(f"train: run {short(run_id)} goes on from step {started_at.step} of {schedule.num_steps}")
        with Following(folder, schedule.num_steps, progress):
            _fit(plan)
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


def _finish(plan: WorkerPlan) -> TrainingRun:
    """Write the finished run's artifact: recipe, metrics, plot, and which checkpoints were kept."""
    store, run_id = plan.store, plan.run_id
    kept = sweep(store, run_id, plan.recipe.train.keep)
    last = list_checkpoints(store, run_id)[-1]
    lines = read_metrics(plan.folder)
    trained, saved_bytes = trained_in(Path(last.ref.uri))
    for suffix in ("svg", "png"):
        plot_loss(lines, plan.folder / f"loss.{suffix}")
    with store.writing(KIND, run_id, plan.parents) as draft:
        (draft.path / "recipe.yaml").write_text(plan.recipe.to_yaml())
        shutil.copy(plan.folder / "metrics.jsonl", draft.path)
        shutil.copy(plan.folder / "loss.svg", draft.path)
        named = {"heldout_loss": "heldout_loss", "train_loss": "loss"}
        summary = {name: last.metrics[key] for name, key in named.items() if key in last.metrics}
        summary |= {"seconds": sum(line["step_s"] for line in lines), "tokens": sum(line["tokens"] for line in lines)}
        draft.facts = {
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
    loss = heldout_of(best)
    said = f"held-out loss {loss:.4f}" if math.isfinite(loss) else "no held-out loss; the last one is kept,"
    trained, saved_bytes = trained_in(Path(best.ref.uri))
    what = f"{sum(trained.values()):,} parameters trained, {saved_bytes:,} bytes saved"
    return f"{run.num_steps} steps, {said} at step {best.step} -> {best.ref.name}; {what}"


def run_from(artifact: Artifact) -> TrainingRun:
    """The noun of a finished run's artifact."""
    facts = artifact.facts
    checkpoints = tuple(from_json(Checkpoint, c) for c in facts["checkpoints"])
    return TrainingRun(artifact.ref, facts["run_id"], facts["num_steps"], checkpoints, facts["metrics"])


def _run_folder(store: Store, run_id: str) -> Path:
    return Path(store.uri if store.is_local else store.uri.split("://", 1)[1]) / checkpoint_kind(run_id)


def _fit(plan: WorkerPlan) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    want, train = plan.recipe.resources, plan.recipe.train
    drop_bookkeeping(plan.folder)
    elastic = want.min_workers != want.max_workers
    _set_timeouts(elastic, train.hang_timeout_s)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(
            backend="nccl" if want.gpus_per_worker else "gloo", timeout_s=math.ceil(train.hang_timeout_s)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(want.min_workers, want.max_workers) if elastic else want.max_workers,
            elastic_resize_monitor_interval_s=want.resize_every_s,
            use_gpu=want.gpus_per_worker > 0,
            resources_per_worker={"CPU": want.cpus_per_worker, "GPU": want.gpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=short(plan.run_id),
            storage_path=str(plan.folder.parent),
            failure_config=ray.train.FailureConfig(
                max_failures=train.max_failures, max_preemption_failures=train.max_preemptions
            ),
            callbacks=[_failure_notes(FailureLog(plan.folder))],
        ),
    )
    try:
        mistake = trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        why = "; ".join(f"worker {rank}: {reason_of(failure)}" for rank, failure in error.worker_failures.items())
        raise UserError(
            f"{plan.folder}: workers failed more often than train.max_failures={train.max_failures} allows, at last ({why}). "
            "What is saved is kept; the same command goes on from there, and -v shows what the workers wrote"
        ) from error
    if mistake:
        raise UserError(mistake)


def drop_bookkeeping(folder: Path) -> None:
    """Remove Ray's list of a run's checkpoints, which it writes in place and refuses to start with when damaged."""
    (folder / _SNAPSHOT).unlink(missing_ok=True)


def _set_timeouts(elastic: bool, hang_timeout_s: float) -> None:
    """Ray Train reads these from the driver's environment; what is set there already stays.

    A worker that does not answer for `hang_timeout_s` is dead, also when every worker is hung and none of them can say
    so. An elastic run counts the workers of a node that has just died for some seconds more: it asks again soon.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(min(600.0, hang_timeout_s)))
    if elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")


def _failure_notes(log: FailureLog) -> Any:
    """Ray Train's callback in its controller that writes failures into the run's folder."""
    import ray.train

    class Notes(ray.train.UserCallback):
        """Writes down what ended workers."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            if not any(was_preempted(error) for error in worker_exceptions.values()):  # else rank 0 has said it already
                log.failed({rank: reason_of(error) for rank, error in worker_exceptions.items()})

    return Notes()


def _worker(config: dict[str, Any]) -> str | None:
    """One rank. A mistake of the user's comes back as its text, because Ray would retry an exception."""
    import torch
    from ray.exceptions import RayActorError
    from ray.train.torch import get_device

    plan: WorkerPlan = config["plan"]
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(plan.recipe.resources.cpus_per_worker)))
    try:
        ended = train_rank(plan, device, _RayChannel(FailureLog(plan.folder)))
    except UserError as error:
        return str(error)
    if not ended:
        # The one way to tell Ray Train to start anew at once and to count it as a preemption: a worker that returns has
        # finished the run, and every other error is a failure.
        raise RayActorError(error_msg="saved and stopped, because a node will be taken away", preempted=True)
    return None


class _RayChannel:
    """Reports to Ray Train. Checkpoints lie in our store already, so Ray copies and deletes nothing."""

    def __init__(self, log: FailureLog) -> None:
        self._log, self._told = log, False

    def report(self, metrics: Mapping[str, float], checkpoint_uri: str | None) -> None:
        import ray.train

        checkpoint = ray.train.Checkpoint(checkpoint_uri) if checkpoint_uri else None
        no_upload = ray.train.CheckpointUploadMode.NO_UPLOAD
        ray.train.report(dict(metrics), checkpoint=checkpoint, checkpoint_upload_mode=no_upload)

    def seconds_left(self) -> float | None:
        import ray.train

        info = ray.train.get_preemption_info()
        if info is None:
            return None
        left = math.inf if info.deadline_ms is None else info.deadline_ms / 1000 - time.time()
        if not self._told and ray.train.get_context().get_world_rank() == 0:
            self._log.announced(info.preempted_ranks, left)
        self._told = True
        return left
