"""What a run does about bad news: a node that goes, Ray's damaged bookkeeping, workers that end, and who is told."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.train.faults.failures import FailureLog
from pipelines.train.faults.preemption import Action, PreemptionPolicy
from pipelines.train.ray_workers import drop_bookkeeping
from pipelines.train.track.progress import RunProgress


class OneRank:
    """As much of an engine as a notice asks for: a rank whose sums are what rank 0 says."""

    def __init__(self, rank: int, rank0_says: float = 0.0) -> None:
        self.rank, self._rank0_says = rank, rank0_says

    def sum_over_ranks(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values) + self._rank0_says


def notice_of(seconds_left: Sequence[float | None], save_s: float = 0.0) -> PreemptionPolicy:
    left = iter(seconds_left)
    notice = PreemptionPolicy(OneRank(0), lambda: next(left))  # type: ignore[arg-type]
    notice.after_save(0.0, save_s)
    return notice


def answers(seconds_left: Sequence[float | None], step_s: float, save_s: float) -> list[Action]:
    notice = notice_of(seconds_left, save_s)
    return [notice.after_step(step_s) for _ in seconds_left]


def test_a_notice_saves_once_and_stops_while_there_is_time_to_save() -> None:
    go_on, save, stop = Action.GO_ON, Action.SAVE, Action.SAVE_AND_STOP
    assert answers([None, None], 1, 1) == [go_on, go_on]
    assert answers([None, 60, 50, 20, 9, 7.5], 1, 1) == [go_on, save, go_on, go_on, go_on, stop]
    assert answers([60, 50, 20], 1, 8) == [
        save,
        go_on,
        stop,
    ]  # two saves of 8 s and a step would end after the node
    assert answers([60, 50, 40], 35, 1) == [save, go_on, stop]  # so would a step of 35 s
    assert answers([3], 1, 1) == [stop]
    assert answers([math.inf, math.inf], 1, 1) == [save, go_on]


def test_a_first_save_that_takes_long_stops_the_run_before_another_step() -> None:
    slow = notice_of([20, 12])
    assert slow.after_step(2.0) is Action.SAVE and slow.after_save(2.0, 8.0)
    quick = notice_of([20, 19])
    assert quick.after_step(2.0) is Action.SAVE and not quick.after_save(2.0, 1.0)
    assert not notice_of([]).after_save(
        2.0, 8.0
    )  # no notice: nobody is asked, no save ever stops a run


def test_the_clock_of_rank_0_decides_for_all_ranks() -> None:
    late = PreemptionPolicy(OneRank(1, rank0_says=-1.0), lambda: 1000.0)  # type: ignore[arg-type]
    assert late.after_step(1.0) is Action.SAVE_AND_STOP
    early = PreemptionPolicy(OneRank(1, rank0_says=500.0), lambda: 0.0)  # type: ignore[arg-type]
    assert early.after_step(1.0) is Action.SAVE


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", _flipped],
    ids=["truncated", "emptied", "flipped"],
)
def test_rays_damaged_snapshot_does_not_stop_a_start(damage: Any, tmp_path: Path) -> None:
    """With the damaged file Ray's own checkpoint manager refuses to start; without it, it starts."""
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    storage = StorageContext(str(tmp_path), "run")
    config: Any = CheckpointConfig()
    CheckpointManager(config, storage)._write_state_to_storage()
    snapshot = tmp_path / "run" / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(damage(snapshot.read_bytes()))
    with pytest.raises((CheckpointManagerInitializationError, UnicodeDecodeError)):
        CheckpointManager(config, storage)
    drop_bookkeeping(tmp_path / "run")
    CheckpointManager(config, storage)
    drop_bookkeeping(tmp_path / "run")  # nothing there: nothing to do


class Said:
    """Keeps what a person would see."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def bar(self, name: str, total: int | None = None) -> Iterator[Any]:
        def advance(count: int = 1, text: str = "") -> None:
            self.done += count

        yield advance


def test_each_end_of_workers_is_noted_once_and_the_bar_goes_back_with_the_run(
    tmp_path: Path,
) -> None:
    line = {
        "loss": 1.0,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "eta_s": 5.0,
        "tokens_per_s": 10.0,
        "memory_bytes": 1 << 20,
    }
    lines = [json.dumps({"step": step, **line}) + "\n" for step in range(1, 6)]
    FailureLog(tmp_path).failed({0: "from an earlier command"})
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    said, log = Said(), FailureLog(tmp_path)
    with RunProgress(tmp_path, 10, said):  # type: ignore[arg-type]
        end = time.monotonic() + 10
        while said.done != 5 and time.monotonic() < end:
            time.sleep(0.02)
        (tmp_path / "new").write_text("".join(lines[:3]))
        os.replace(tmp_path / "new", tmp_path / "metrics.jsonl")
        for _ in range(3):  # the controller asks its workers every two seconds
            log.failed({1: "ActorDiedError: gone"})
        log.announced([0, 2], 29.6)
        log.announced([1], math.inf)
    assert said.done == 3
    assert said.notes == [
        "train: failed: worker 1: ActorDiedError: gone",
        "train: the node of worker 0, 2 will be taken away in 30 s; this does not count as a failure",
        "train: the node of worker 1 will be taken away soon; this does not count as a failure",
    ]
