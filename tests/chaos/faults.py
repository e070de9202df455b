"""Faults that a worker's own code meets at a given point of a run."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Faults:
    """What happens to one rank of an attempt. Steps count from the start of the run.

    - kill_at_step: SIGKILL at the end of this step.
    - die_at_byte: the kernel ends the process when it writes a file beyond this size.
    - refuse_writes_at_step: from here on, no file of this rank can grow.
    - hang_at_step: this step never ends.
    - preempt_at_step, preempt_in_s: at this step of the attempt the node is announced to go, in so
      many seconds; infinite means without a deadline.
    - poison_at_step: one gradient of this step is NaN.
    - other_store: this rank sees another folder as the store.
    - free_bytes: the free space that the disk reports.
    - corrupt: what happens to a checkpoint's files after they are written and verified, from the
      second checkpoint on: "weights", "configuration" or "cut".
    - unverified: all ranks leave out the comparison of the saved with the live weights.
    """

    rank: int = 0
    kill_at_step: int | None = None
    die_at_byte: int | None = None
    refuse_writes_at_step: int | None = None
    hang_at_step: int | None = None
    preempt_at_step: int | None = None
    preempt_in_s: float = math.inf
    poison_at_step: int | None = None
    other_store: Path | None = None
    free_bytes: int | None = None
    corrupt: str = ""
    unverified: bool = False


NO_FAULTS = Faults()


class PreemptingChannel:
    """A channel that announces the node's end from `preempt_at_step` of this attempt on."""

    def __init__(self, faults: Faults) -> None:
        self._faults, self._num_calls, self._deadline = faults, 0, 0.0

    def report(self, metrics: Mapping[str, float], checkpoint_uri: str | None) -> None: ...

    def seconds_left(self) -> float | None:
        self._num_calls += 1
        if self._num_calls == self._faults.preempt_at_step:
            self._deadline = time.monotonic() + self._faults.preempt_in_s
        return self._deadline - time.monotonic() if self._deadline else None


def plant(worker: Any, faults: Faults) -> None:
    """Make the module `pipelines.train.worker` of this process meet the faults."""
    if faults.die_at_byte is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults.die_at_byte, resource.RLIM_INFINITY))
    if faults.free_bytes is not None:
        usage = shutil.disk_usage("/")._replace(free=faults.free_bytes)
        shutil.disk_usage = lambda path: usage
    if faults.corrupt:
        _corrupt_checkpoints(faults.corrupt)
    if faults.unverified:
        from pipelines.train.checkpoint import save

        save.CheckpointSaver._compare_reloaded = lambda self, folder, step: None
    train_steps: Callable[..., None] = worker.train_steps

    def with_faults(
        engine: Any, row_order: Any, rows: Any, first_step: int, on_step: Callable[..., Any]
    ) -> None:
        def on_step_with_faults(step: int, metrics: dict[str, float], rows: Any) -> Any:
            if step == faults.kill_at_step:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == faults.hang_at_step:
                time.sleep(10_000)
            if step == faults.refuse_writes_at_step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return on_step(step, metrics, rows)

        if faults.poison_at_step is not None:
            _poison(engine, faults.poison_at_step - first_step)
        train_steps(engine, row_order, rows, first_step, on_step_with_faults)

    worker.train_steps = with_faults


def _corrupt_checkpoints(how: str) -> None:
    """Change a checkpoint's files after they were written and verified, from the second one on."""
    from safetensors.torch import load_file, save_file

    from pipelines.train.checkpoint import save

    write_checkpoint, numbers = save.write_checkpoint, itertools.count(1)

    def corrupting(folder: Path, *args: Any) -> dict[str, Any]:
        metadata = write_checkpoint(folder, *args)
        if next(numbers) == 1:
            return metadata
        file = next(path for path in folder.glob("*/*.safetensors"))
        if how == "weights":
            tensors = load_file(str(file))
            last = max(tensors)  # a B matrix of an adapter, a norm of a full model
            save_file(tensors | {last: tensors[last] * 1.01}, str(file), metadata={"format": "pt"})
        elif how == "cut":
            file.write_bytes(file.read_bytes()[:-4])
        else:
            path = file.with_name("adapter_config.json")
            path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 64}))
        return metadata

    save.write_checkpoint = corrupting


def _poison(engine: Any, at: int) -> None:
    """Make the gradient of this rank's `at`-th micro-batch from here NaN."""
    accumulate, numbers = engine.accumulate, itertools.count(1)

    def poisoned(batch: Any, tokens: Any) -> Any:
        return accumulate(batch, tokens * float("nan") if next(numbers) == at else tokens)

    engine.accumulate = poisoned
