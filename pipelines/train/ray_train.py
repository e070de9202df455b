"""The training stage on Ray Train: N workers run the loop, rank 0 writes, and a killed run goes on where it was.

The run's name is the digest of everything that shapes its result, so the same command finds, continues or reuses it.
Our own manifests decide where a run resumes; Ray's snapshot of its bookkeeping is only a cache and is dropped at start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

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
from pipelines.storage import Artifact, Store
from pipelines.train.checkpoint import (
    checkpoint_kind,
    list_checkpoints,
    load_state,
    newest_sound,
    save_checkpoint,
    sweep,
)
from pipelines.train.loop import Schedule, heldout_loss, train_steps
from pipelines.train.metrics import MetricsLog, memory_bytes, read_metrics

KIND = "trained"
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_POLL_S = 0.5


class Feed(Protocol):
    """Streams packed rows of one split in a given order."""

    def batches(self, order: np.ndarray, batch_size: int, start: int = 0) -> Iterator[Mapping[str, Any]]: ...


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker is told: picklable, the same on all ranks."""

    recipe: Recipe
    store: Store
    prepared: PreparedDataset
    run_id: str
    parents: Mapping[str, str]
    open_feed: Callable[[Path, str], Feed]


def run_id_of(recipe: Recipe, prepared: PreparedDataset, fingerprint: str) -> str:
    """Digest of what shapes the result: data, base, adapter and training sections; not the resources."""
    model = recipe.model.model_dump(exclude={"base", "revision"})
    sections = {
        "model": model,
        "lora": recipe.lora.model_dump(),
        "train": recipe.train.model_dump(exclude={"max_failures"}),
    }
    return digest_of({"prepared": prepared.ref.digest, "base": fingerprint, **sections})


def train(
    recipe: Recipe, store: Store, prepared: PreparedDataset, open_feed: Callable[[Path, str], Feed], progress: Progress
) -> TrainingRun:
    """Train, or find the finished run, or go on with a broken one; Ray must be initialised.

    Raises UserError for what the recipe got wrong, RuntimeError when workers kept dying.
    """
    fingerprint = base_fingerprint(recipe.model.base, recipe.model.revision)
    run_id = run_id_of(recipe, prepared, fingerprint)
    finished = store.find(KIND, run_id)
    if finished:
        run = run_from(finished)
        progress.note(f"train: run {short(run_id)} found, {_summary(run)}")
        return run
    parents = {"prepared": prepared.ref.digest, "base": fingerprint, "recipe": recipe.digest}
    plan = WorkerPlan(recipe, store, prepared, run_id, parents, open_feed)
    schedule = Schedule(prepared.train.num_rows, recipe.train)
    started_at, damaged = newest_sound(store, run_id)
    for line in damaged:
        progress.note(f"train: checkpoint damaged, {line}")
    if started_at:
        progress.note(f"train: run {short(run_id)} goes on from step {started_at.step} of {schedule.num_steps}")
    with _following(_run_folder(store, run_id), schedule.num_steps, progress):
        _fit(plan)
    kept = sweep(store, run_id, recipe.train.keep)
    last = list_checkpoints(store, run_id)[-1]
    with store.writing(KIND, run_id, parents) as draft:
        lines = read_metrics(_run_folder(store, run_id))
        (draft.path / "recipe.yaml").write_text(recipe.to_yaml())
        summary = {"heldout_loss": last.metrics["heldout_loss"], "train_loss": last.metrics["loss"]}
        summary["seconds"] = sum(line["step_s"] for line in lines)
        summary["tokens"] = sum(line["tokens"] for line in lines)
        draft.facts = {
            "run_id": run_id,
            "num_steps": schedule.num_steps,
            "checkpoints": [to_json(checkpoint) for checkpoint in kept],
            "metrics": summary,
        }
    finished = store.find(KIND, run_id)
    assert finished is not None
    run = run_from(finished)
    progress.note(f"train: run {short(run_id)}, {_summary(run)}")
    return run


def find_run(recipe: Recipe, store: Store, prepared: PreparedDataset) -> TrainingRun | None:
    """The finished run of this recipe on this dataset, or None."""
    fingerprint = base_fingerprint(recipe.model.base, recipe.model.revision)
    finished = store.find(KIND, run_id_of(recipe, prepared, fingerprint))
    return run_from(finished) if finished else None


def _summary(run: TrainingRun) -> str:
    best = run.best
    return f"{run.num_steps} steps, held-out loss {best.metrics['heldout_loss']:.4f} at step {best.step} -> {best.ref.name}"


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

    want = plan.recipe.resources
    folder = _run_folder(plan.store, plan.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SNAPSHOT).unlink(missing_ok=True)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(backend="nccl" if want.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=want.workers,
            use_gpu=want.gpus_per_worker > 0,
            resources_per_worker={"CPU": want.cpus_per_worker, "GPU": want.gpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=short(plan.run_id),
            storage_path=str(folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=plan.recipe.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=plan.recipe.train.keep,
                checkpoint_score_attribute="heldout_loss",
                checkpoint_score_order="min",
            ),
        ),
    )
    mistake = trainer.fit().return_value
    if mistake:
        raise UserError(mistake)


def _worker(config: dict[str, Any]) -> str | None:
    """One rank. A mistake of the user's comes back as its text, because Ray would retry an exception."""
    try:
        _train_rank(config["plan"])
    except UserError as error:
        return str(error)
    return None


def _train_rank(plan: WorkerPlan) -> None:
    import torch
    from ray.train.torch import get_device

    from pipelines.model.base import load_base
    from pipelines.model.lora import attach
    from pipelines.train.attention import PACKED
    from pipelines.train.engine import DeepSpeedEngine

    recipe, store = plan.recipe, plan.store
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(recipe.resources.cpus_per_worker)))
    model = attach(load_base(recipe.model, str(device), PACKED), recipe.lora, recipe.train.seed)
    engine = DeepSpeedEngine(model, recipe.train, device)
    resumed, _ = newest_sound(store, plan.run_id)
    if resumed:
        engine.restore(load_state(store, resumed))
    first_step = resumed.step if resumed else 0
    schedule = Schedule(plan.prepared.train.num_rows, recipe.train)
    folder = store.local_dir(plan.prepared.ref)
    order = schedule.order(first_step, engine.rank, engine.world_size)
    rows = _rows(plan.open_feed(folder, "train"), order, recipe.train.micro_batch)
    num_heldout = plan.prepared.heldout.num_rows
    mine = np.arange(num_heldout)[engine.rank :: engine.world_size]
    heldout = list(_rows(plan.open_feed(folder, "heldout"), mine, 32))
    log = MetricsLog(_run_folder(store, plan.run_id), first_step) if engine.rank == 0 else None

    def on_step(step: int, values: dict[str, float]) -> None:
        if log:
            log.write(step, values | {"memory_bytes": memory_bytes()})
        if step % recipe.train.save_every == 0 or step == schedule.num_steps:
            scores = {"heldout_loss": heldout_loss(engine, heldout, num_heldout, recipe.train.micro_batch)}
            _report(plan, engine, model, {"loss": values["loss"], **scores})

    train_steps(engine, schedule, rows, first_step, on_step)
    if log:
        log.close()


def _report(plan: WorkerPlan, engine: Any, model: Any, metrics: dict[str, float]) -> None:
    """Gather, write and verify on rank 0, then tell Ray Train; every rank takes part."""
    import ray.train

    state = engine.gather()
    checkpoint = None
    if engine.rank == 0:
        saved = save_checkpoint(plan.store, plan.run_id, model, plan.recipe.model.base, state, metrics, plan.parents)
        checkpoint = ray.train.Checkpoint(saved.ref.uri)
    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD)


def _rows(feed: Feed, order: np.ndarray, batch_size: int) -> Iterator[Mapping[str, Any]]:
    for batch in feed.batches(order, batch_size) if len(order) else ():
        columns = list(batch)
        for index in range(len(batch[columns[0]])):
            yield {column: batch[column][index] for column in columns}


class _following:
    """Draws the progress of a run by reading its metrics.jsonl while the workers write it."""

    def __init__(self, folder: Path, num_steps: int, progress: Progress) -> None:
        self._folder, self._num_steps, self._progress = folder, num_steps, progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _draw(self) -> None:
        shown = 0
        with self._progress.bar("train steps", self._num_steps) as advance:
            while True:
                finished = self._done.wait(_POLL_S)
                lines = read_metrics(self._folder)
                if len(lines) > shown:
                    last = lines[-1]
                    text = f"loss {last['loss']:.4f}  {last['tokens_per_s']:,.0f} tokens/s  {last['memory_bytes'] >> 20:,} MiB"
                    advance(len(lines) - shown, text)
                    shown = len(lines)
                if finished:
                    return
