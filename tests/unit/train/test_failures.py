"""Failures of a run: Ray's damaged bookkeeping, and the notes about workers that ended."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.train.faults.failures import FailureLog
from pipelines.train.ray_workers import delete_ray_checkpoint_list
from pipelines.train.track.run_progress import RunProgress
from tests.recorders import ProgressRecorder


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", _flipped],
    ids=["truncated", "emptied", "flipped"],
)
def test_rays_damaged_list_of_checkpoints_does_not_stop_a_start(
    damage: Any, tmp_path: Path
) -> None:
    """Ray's checkpoint manager refuses to start with the damaged file, and starts without it."""
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
    delete_ray_checkpoint_list(tmp_path / "run")
    CheckpointManager(config, storage)
    delete_ray_checkpoint_list(tmp_path / "run")  # nothing to delete is no error


def test_each_failure_is_noted_once_and_the_bar_goes_back_with_the_run(tmp_path: Path) -> None:
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
    recorder, log = ProgressRecorder(), FailureLog(tmp_path)
    with RunProgress(tmp_path, 10, recorder):
        end = time.monotonic() + 10
        while recorder.positions[-1] != 5 and time.monotonic() < end:
            time.sleep(0.02)
        (tmp_path / "new").write_text("".join(lines[:3]))
        os.replace(tmp_path / "new", tmp_path / "metrics.jsonl")
        for _ in range(3):  # Ray's controller polls its workers every two seconds
            log.failed({1: "ActorDiedError: gone"})
        log.announced([0, 2], 29.6)
        log.announced([1], math.inf)
    assert recorder.positions[-1] == 3
    gone = "will be taken away"
    assert recorder.notes == [
        "train: failed: worker 1: ActorDiedError: gone",
        f"train: the node of worker 0, 2 {gone} in 30 s; this does not count as a failure",
        f"train: the node of worker 1 {gone} soon; this does not count as a failure",
    ]
