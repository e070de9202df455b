"""One training worker: from a plan and a process group to verified checkpoints. Knows no Ray; a channel reports for it."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import PreparedDataset
from pipelines.plan.memory import device_bytes, resolved
from pipelines.storage import Store, as_user_error
from pipelines.train.batch import Row
from pipelines.train.build_model import build_model
from pipelines.train.checkpoint.files import (
    TrainingState,
    check_space,
    checkpoint_bytes,
    finite,
    latest_verified,
    load_training_state,
    verified_at,
)
from pipelines.train.checkpoint.retention import discard_after, is_stale
from pipelines.train.checkpoint.save import CheckpointSaver
from pipelines.train.engine.collectives import all_reduce_min, broadcast_int, raise_on_all_ranks
from pipelines.train.engine.deepspeed import DeepSpeedEngine
from pipelines.train.faults.failures import FailureLog
from pipelines.train.faults.preemption import Action, PreemptionPolicy
from pipelines.train.loop import heldout_loss, train_steps
from pipelines.train.row_order import RowOrder
from pipelines.train.track.metrics_log import MetricsLog, SampleLog
from pipelines.train.track.throughput import ThroughputMeter, matmul_rate


class Feed(Protocol):
    """Streams packed rows of one split in a given order."""

    def batches(
        self, order: np.ndarray, batch_size: int, start: int = 0
    ) -> Iterator[Mapping[str, Any]]: ...


class Channel(Protocol):
    """How a worker reaches whoever started it. Both are collective: every rank calls them equally often."""

    def report(self, metrics: Mapping[str, float], checkpoint_uri: str | None) -> None: ...

    def seconds_left(self) -> float | None:
        """How long it takes until some worker's node is taken away; infinite when nobody says, None when none will be."""
        ...


@dataclass(frozen=True)
class WorkerArgs:
    """What every worker is told: picklable, the same on all ranks."""

    recipe: Recipe
    store: Store
    prepared: PreparedDataset
    run_id: str
    parents: Mapping[str, str]
    folder: Path
    open_feed: Callable[[Path, str], Feed]


def train_rank(plan: WorkerArgs, device: torch.device, channel: Channel) -> bool:
    """Train this rank's share, going on from the newest sound checkpoint. The process group must be up.

    Returns whether training has ended; False when it stopped, all saved, because a node will be taken away.
    Raises UserError, alike on all ranks, for what a person can mend: a full disk, a loss that is not finite, a base
    that does not load.
    """
    watch = _Watch(plan.recipe.train.hang_timeout_s)
    try:
        return _Rank(plan, device, channel, watch).run()
    finally:
        watch.stop()


class _Watch:
    """Ends the process, with every thread's stack on stderr, when a step, a scoring or a save takes too long: a hung
    collective is a death.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, exit=True)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()


class _Rank:
    def __init__(
        self, plan: WorkerArgs, device: torch.device, channel: Channel, watch: _Watch
    ) -> None:
        self._plan, self._channel, self._watch = plan, channel, watch
        self._store = plan.store
        snapshot = self._agreed_start(device)
        self._finished = bool(snapshot and snapshot.finished)
        if self._finished:
            return
        memory = all_reduce_min(device_bytes(device), device)
        self._recipe = recipe = resolved(
            plan.recipe, plan.prepared.row_tokens, memory, torch.distributed.get_world_size()
        )
        self._schedule = RowOrder(plan.prepared.train.num_rows, recipe.train)
        self._first_step = snapshot.step if snapshot else 0
        self._data = plan.store.local_dir(plan.prepared.ref)
        with raise_on_all_ranks(device):
            self._built = build_model(
                recipe,
                self._schedule,
                plan.prepared.row_tokens,
                lambda order: self._rows("train", order),
                device,
                snapshot,
            )
        b_ratio = recipe.lora.lr_ratio if recipe.train.method == "lora" else 1.0
        self._engine = DeepSpeedEngine(self._built.model, recipe.train, device, b_ratio)
        self._history: list[Mapping[str, float]] = []
        if snapshot:
            self._engine.restore(snapshot.state)
            self._history = [*snapshot.history, snapshot.metrics]
        if self._engine.rank == 0:
            discard_after(plan.store, plan.run_id, self._first_step)

    def _agreed_start(self, device: torch.device) -> TrainingState | None:
        """The checkpoint from which all ranks go on: the newest that rank 0 finds sound."""
        store, run_id = self._store, self._plan.run_id
        mine, damaged = (
            latest_verified(store, run_id) if torch.distributed.get_rank() == 0 else (None, [])
        )
        for line in damaged:
            FailureLog(self._plan.folder).damaged(line)
        step = broadcast_int(mine.step if mine else 0, device)
        with raise_on_all_ranks(device):
            return (
                load_training_state(store, mine or verified_at(store, run_id, step))
                if step
                else None
            )

    def run(self) -> bool:
        if self._finished:
            return True
        engine, recipe = self._engine, self._recipe
        self._open()
        order = self._schedule.order(self._first_step, engine.rank, engine.world_size)
        rows = self._rows("train", order, recipe.train.micro_batch)
        self._watch.restart()
        try:
            train_steps(engine, self._schedule, rows, self._first_step, self._on_step)
        except BaseException:
            if self._log:
                with suppress(OSError):  # a full disk is what may have ended the run
                    self._log.close(finished=False)
            raise
        with self._writing():
            if self._log:
                self._log.close()
        return self._ended

    def _open(self) -> None:
        """Bring what the steps' ends need: held-out rows, logs, the saver, the meter and the ear for notices."""
        engine, recipe, plan, built = self._engine, self._recipe, self._plan, self._built
        self._num_heldout = plan.prepared.heldout.num_rows
        mine = np.arange(self._num_heldout)[engine.rank :: engine.world_size]
        self._heldout = list(self._rows("heldout", mine, 32))
        (started_at,) = engine.sum_over_ranks([0.0 if engine.rank else time.time()]).tolist()
        self._notice, self._ended = PreemptionPolicy(engine, self._channel.seconds_left), True
        about, folder = (
            {"recipe": recipe.model_dump(mode="json"), "run_id": plan.run_id},
            plan.folder,
        )
        with self._writing():
            if not engine.rank:
                check_space(
                    self._store, built.num_trained
                )  # now, not after the first `save_every` steps
            self._samples = (
                SampleLog(folder, started_at, engine.rank) if recipe.train.record_samples else None
            )
            self._log = (
                None
                if engine.rank
                else MetricsLog(folder, self._first_step, recipe.train.trackers, about)
            )
        probe = (
            self._heldout[0] if self._heldout else next(self._rows("train", np.zeros(1, np.int64)))
        )
        self._saver = CheckpointSaver(
            self._store, recipe, plan.run_id, plan.parents, engine, built, probe
        )
        rate = (
            matmul_rate(engine.device, built.size.dtype) if engine.device.type == "cuda" else None
        )
        self._meter = ThroughputMeter(
            built.size, recipe.train.method == "full", self._schedule.num_steps, rate
        )

    def _rows(self, split: str, order: np.ndarray, batch_size: int = 1) -> Iterator[Row]:
        """The packed rows of a split in an order, one by one."""
        for batch in (
            self._plan.open_feed(self._data, split).batches(order, batch_size) if len(order) else ()
        ):
            columns = list(batch)
            for index in range(len(batch[columns[0]])):
                yield {column: batch[column][index] for column in columns}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside, what a rank's disk refuses ends all ranks with the same UserError. Collective."""
        store, folder = self._store, str(self._plan.folder)
        with (
            raise_on_all_ranks(self._engine.device),
            as_user_error(store.uri, folder, wants_bytes=self._wants),
        ):
            yield

    def _wants(self) -> int:
        return 2 * checkpoint_bytes(self._built.num_trained)

    def _on_step(self, step: int, values: dict[str, float], rows: Sequence[Row]) -> bool:
        train = self._recipe.train
        began = time.perf_counter()
        last = step == self._schedule.num_steps
        answer = Action.GO_ON if last else self._notice.after_step(values["step_s"])
        scores: dict[str, float] = {}
        saves = step % train.save_every == 0 or last or answer is not Action.GO_ON
        if saves and self._num_heldout:
            self._watch.restart()
            scores["heldout_loss"] = heldout_loss(
                self._engine, self._heldout, self._num_heldout, train.micro_batch
            )
        if saves:
            self._watch.restart()
        with self._writing():
            if self._samples:
                self._samples.write(step, rows)
            if self._log:
                self._log.write(
                    step, values | scores | self._meter.read(step, values["step_s"], rows)
                )
        if saves:
            metrics = finite({"loss": values["loss"], **scores})
            last = last or is_stale([*self._history, metrics], train.patience)
            self._save(step, metrics, last)
            stop = self._notice.after_save(values["step_s"], time.perf_counter() - began)
            self._ended = last or not (stop or answer is Action.SAVE_AND_STOP)
        self._watch.restart()
        return not last and self._ended

    def _save(self, step: int, metrics: Mapping[str, float], finished: bool) -> None:
        """Save and verify with all ranks, then report; every rank learns when rank 0 could not."""
        uri = self._saver.save(step, metrics, tuple(self._history), finished)
        self._history.append(dict(metrics))
        self._channel.report(dict(metrics), uri)
