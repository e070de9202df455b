"""One training worker: from its arguments and a process group to verified checkpoints.

Knows nothing of Ray: a `Channel` connects it with the process that started it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import PreparedDataset
from pipelines.plan.memory import device_bytes, resolve_auto
from pipelines.storage import Store, as_user_error
from pipelines.train.base_proof import prove_base
from pipelines.train.batch import Row
from pipelines.train.build_model import build_model
from pipelines.train.checkpoint.files import (
    TrainingState,
    check_space,
    checkpoint_bytes,
    latest_verified,
    load_training_state,
    only_finite,
    verified_at,
)
from pipelines.train.checkpoint.retention import discard_after, should_stop_early
from pipelines.train.checkpoint.save import CheckpointSaver
from pipelines.train.engine.collectives import all_reduce_min, broadcast_int, raise_on_all_ranks
from pipelines.train.engine.deepspeed import DeepSpeedEngine
from pipelines.train.faults.failures import FailureLog
from pipelines.train.faults.preemption import Action, PreemptionPolicy
from pipelines.train.faults.watchdog import Watchdog
from pipelines.train.loop import heldout_loss, train_steps
from pipelines.train.proof_errors import base_errors_as_user_errors, check_proof
from pipelines.train.proof_samples import choose_samples
from pipelines.train.row_feed import Feed
from pipelines.train.row_order import RowOrder
from pipelines.train.track.metrics_log import MetricsLog, SampleLog
from pipelines.train.track.proof_log import write_proof
from pipelines.train.track.throughput import ThroughputMeter, matmul_rate

_HELDOUT_READ = 32  # held-out rows that a worker reads at a time


class Channel(Protocol):
    """Connects a worker with the process that started it.

    Both methods are collective: every rank calls them equally often.
    """

    def report(self, metrics: Mapping[str, float], checkpoint_uri: str | None) -> None:
        """Report a saved checkpoint; its URI is given on rank 0."""
        ...

    def seconds_left(self) -> float | None:
        """Seconds until the first node of the run is reclaimed: infinite without a deadline.

        None if no node is announced to go.
        """
        ...


@dataclass(frozen=True)
class WorkerArgs:
    """The arguments of every worker: picklable, the same on all ranks.

    `parents` are the digests for the checkpoints' manifests, `folder` is the run's local folder,
    and `open_feed(folder, split)` opens the packed rows of a split.
    """

    recipe: Recipe
    store: Store
    prepared: PreparedDataset
    run_id: str
    parents: Mapping[str, str]
    folder: Path
    open_feed: Callable[[Path, str], Feed]


def train_rank(args: WorkerArgs, device: torch.device, channel: Channel) -> bool:
    """Train this rank's part of a run, resuming from the latest verified checkpoint. Collective.

    The process group must be initialised. Returns whether training has ended; False if it saved and
    stopped because a node will be reclaimed. Raises the same UserError on all ranks for errors that
    a user can correct: a full disk, a loss that is not finite, a base that does not load.
    """
    watchdog = Watchdog(args.recipe.train.hang_timeout_s)
    try:
        start_state = _start_state(args, device)
        if start_state and start_state.finished:
            return True
        return _Rank(args, device, channel, watchdog, start_state).run()
    finally:
        watchdog.stop()


def _start_state(args: WorkerArgs, device: torch.device) -> TrainingState | None:
    """The state of the latest checkpoint that rank 0 verifies, or None. Collective."""
    store, run_id = args.store, args.run_id
    checkpoint, damaged = None, []
    if torch.distributed.get_rank() == 0:
        checkpoint, damaged = latest_verified(store, run_id)
    for line in damaged:
        FailureLog(args.folder).damaged(line)
    step = broadcast_int(checkpoint.step if checkpoint else 0, device)
    with raise_on_all_ranks(device):
        if not step:
            return None
        return load_training_state(store, checkpoint or verified_at(store, run_id, step))


class _Rank:
    """One rank of a run that has steps left."""

    def __init__(
        self,
        args: WorkerArgs,
        device: torch.device,
        channel: Channel,
        watchdog: Watchdog,
        start_state: TrainingState | None,
    ) -> None:
        self._args, self._channel, self._watchdog = args, channel, watchdog
        self._store = args.store
        # All ranks must resolve "auto" to the same values: the GPU with the least memory decides.
        memory = all_reduce_min(device_bytes(device), device)
        self._recipe = recipe = resolve_auto(
            args.recipe, args.prepared.row_tokens, memory, torch.distributed.get_world_size()
        )
        self._row_order = RowOrder(args.prepared.train.num_rows, recipe.train)
        self._first_step = start_state.step if start_state else 0
        self._data = args.store.local_dir(args.prepared.ref)
        with raise_on_all_ranks(device), base_errors_as_user_errors(recipe.model.base):
            self._built = build_model(
                recipe,
                self._row_order,
                args.prepared.row_tokens,
                lambda order: self._rows("train", order),
                device,
                start_state,
            )
        b_ratio = recipe.lora.lr_ratio if recipe.train.method == "lora" else 1.0
        self._engine = DeepSpeedEngine(self._built.model, recipe.train, device, b_ratio)
        self._history: list[Mapping[str, float]] = []
        if start_state:
            self._engine.restore(start_state.optimizer)
            self._history = [*start_state.history, start_state.metrics]
        if self._engine.rank == 0:
            discard_after(args.store, args.run_id, self._first_step)

    def run(self) -> bool:
        """Train to the end, or until a node will be reclaimed; whether training has ended."""
        engine, recipe = self._engine, self._recipe
        self._prove_base()
        self._open()
        order = self._row_order.rows_of_rank(self._first_step, engine.rank, engine.world_size)
        rows = self._rows("train", order, recipe.train.micro_batch)
        self._watchdog.restart()
        try:
            train_steps(engine, self._row_order, rows, self._first_step, self._on_step)
        except BaseException:
            if self._log:
                with suppress(OSError):  # a full disk may be the error that ended the run
                    self._log.close(finished=False)
            raise
        with self._disk_errors():
            if self._log:
                self._log.close()
        return self._has_ended

    def _prove_base(self) -> None:
        """Compare the packed path with transformers' own forward, on the live weights. Collective.

        Raises UserError on all ranks if they differ.
        """
        base, feed = self._recipe.model.base, self._args.open_feed(self._data, "train")
        self._watchdog.restart()
        with self._disk_errors(), base_errors_as_user_errors(base):
            samples = choose_samples(feed, self._args.prepared.row_tokens)
            if not samples:
                return
            proof = prove_base(self._engine.packed_loss, samples, self._engine.device)
            check_proof(proof, base, self._built.model)
            if not self._engine.rank:
                write_proof(self._args.folder, proof)

    def _open(self) -> None:
        """Open what the end of a step needs: held-out rows, logs, saver, meter and preemption."""
        engine, recipe, args, built = self._engine, self._recipe, self._args, self._built
        self._num_heldout = args.prepared.heldout.num_rows
        own_heldout = np.arange(self._num_heldout)[engine.rank :: engine.world_size]
        self._heldout = list(self._rows("heldout", own_heldout, _HELDOUT_READ))
        # All ranks name their files of this start after rank 0's clock.
        (started_at,) = engine.sum_over_ranks([0.0 if engine.rank else time.time()]).tolist()
        self._preemption = PreemptionPolicy(engine, self._channel.seconds_left)
        self._has_ended = True
        self._samples: SampleLog | None = None
        self._log: MetricsLog | None = None
        with self._disk_errors():
            if not engine.rank:
                # Now, not after the first `save_every` steps.
                check_space(self._store, built.num_trainable_parameters)
            if recipe.train.record_samples:
                self._samples = SampleLog(args.folder, started_at, engine.rank)
            if not engine.rank:
                run_info = {"recipe": recipe.model_dump(mode="json"), "run_id": args.run_id}
                self._log = MetricsLog(
                    args.folder, self._first_step, recipe.train.trackers, run_info
                )
        first_row = np.zeros(1, np.int64)
        self._saver = CheckpointSaver(
            self._store,
            recipe,
            args.run_id,
            args.parents,
            engine,
            built.model,
            built.pissa,
            built.num_trainable_parameters,
            probe=self._heldout[0] if self._heldout else next(self._rows("train", first_row)),
        )
        on_gpu = engine.device.type == "cuda"
        rate = matmul_rate(engine.device, built.shape.dtype) if on_gpu else None
        self._meter = ThroughputMeter(
            built.shape, recipe.train.method == "full", self._row_order.num_steps, rate
        )

    def _rows(self, split: str, order: np.ndarray, batch_size: int = 1) -> Iterator[Row]:
        """The packed rows of a split in an order, read `batch_size` at a time."""
        if not len(order):
            return
        for batch in self._args.open_feed(self._data, split).batches(order, batch_size):
            columns = list(batch)
            for index in range(len(batch[columns[0]])):
                yield {column: batch[column][index] for column in columns}

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """If a rank's disk refuses a write inside, all ranks raise one UserError. Collective."""

        def wanted_bytes() -> int:
            return 2 * checkpoint_bytes(self._built.num_trainable_parameters)

        with (
            raise_on_all_ranks(self._engine.device),
            as_user_error(self._store.uri, str(self._args.folder), wants_bytes=wanted_bytes),
        ):
            yield

    def _on_step(self, step: int, metrics: dict[str, float], rows: Sequence[Row]) -> bool:
        """Score, log and save after a step; False ends training here. Collective."""
        train = self._recipe.train
        started = time.perf_counter()
        step_s = metrics["step_s"]
        is_last = step == self._row_order.num_steps
        action = Action.CONTINUE if is_last else self._preemption.after_step(step_s)
        saves = step % train.save_every == 0 or is_last or action is not Action.CONTINUE
        scores: dict[str, float] = {}
        if saves and self._num_heldout:
            self._watchdog.restart()
            scores["heldout_loss"] = heldout_loss(
                self._engine, self._heldout, self._num_heldout, train.micro_batch
            )
        if saves:
            self._watchdog.restart()
        with self._disk_errors():
            if self._samples:
                self._samples.write(step, rows)
            if self._log:
                self._log.write(step, metrics | scores | self._meter.read(step, step_s, rows))
        if saves:
            summary = only_finite({"loss": metrics["loss"], **scores})
            is_last = is_last or should_stop_early([*self._history, summary], train.patience)
            self._save(step, summary, is_last)
            stops = self._preemption.after_save(step_s, time.perf_counter() - started)
            self._has_ended = is_last or not (stops or action is Action.SAVE_AND_STOP)
        self._watchdog.restart()
        return not is_last and self._has_ended

    def _save(self, step: int, metrics: Mapping[str, float], finished: bool) -> None:
        """Save and verify with all ranks, then report. Collective."""
        uri = self._saver.save(step, metrics, tuple(self._history), finished)
        self._history.append(dict(metrics))
        self._channel.report(dict(metrics), uri)
