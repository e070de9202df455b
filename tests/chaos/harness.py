"""Training workers as plain processes over gloo, which a test can kill at any point.
 The worker is the product's own (`pipelines.train.worker`). Only Ray Train and Ray Data are
missing, so that a restart takes seconds.
"""

from __future__ import annotations

import datetime
import itertools
import multiprocessing
import os
import time
import traceback
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.core.errors import UserError
from pipelines.storage import Store
from pipelines.train.worker import WorkerArgs
from tests.chaos.faults import NO_FAULTS, Faults, PreemptingChannel, plant

_ATTEMPTS = itertools.count()
_STOPPED = 3  # exit code of a rank that saved and stopped before the end


@dataclass
class Outcome:
    """How the ranks of an attempt ended: exit codes (negative: signal) and UserErrors."""

    codes: list[int]
    errors: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Every rank trained to the end of the run."""
        return all(code == 0 for code in self.codes) and not self.errors

    @property
    def stopped(self) -> bool:
        """Every rank saved and stopped by itself before the end."""
        return all(code == _STOPPED for code in self.codes)


def attempt(
    args: WorkerArgs, world_size: int, faults: Faults = NO_FAULTS, timeout_s: float = 240
) -> Outcome:
    """Start the workers and wait for their end.

    If one dies the others are killed, as Ray Train does.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.preload"])
    args.folder.mkdir(parents=True, exist_ok=True)
    meeting = args.folder.parent / f"meeting-{os.getpid()}-{next(_ATTEMPTS)}"
    results: Any = context.SimpleQueue()
    processes = [
        context.Process(
            target=_rank, args=(args, rank, world_size, str(meeting), faults, results), daemon=True
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout_s
    while any(p.is_alive() for p in processes) and time.monotonic() < end:
        if any(p.exitcode not in (None, 0, _STOPPED) for p in processes):
            time.sleep(0.5)
            break
        time.sleep(0.05)
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    errors = []
    while not results.empty():
        errors.append(results.get())
    return Outcome([process.exitcode or 0 for process in processes], errors)


def _rank(
    args: WorkerArgs, rank: int, world_size: int, meeting: str, faults: Faults, results: Any
) -> None:
    import torch
    import torch.distributed as dist

    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group(
        "gloo", f"file://{meeting}", rank=rank, world_size=world_size, timeout=timeout
    )
    from pipelines.train import worker

    channel, has_ended = PreemptingChannel(faults), True
    if faults.rank == rank or faults.unverified:
        plant(worker, faults)
        args = replace(args, store=Store(faults.other_store)) if faults.other_store else args
    try:
        has_ended = worker.train_rank(args, torch.device("cpu"), channel)
    except UserError as error:
        results.put(str(error))
    except Exception:  # noqa: BLE001  (the process boundary)
        traceback.print_exc()
        os._exit(1)
    # `os._exit`, because gloo's threads sometimes abort a process that exits normally.
    os._exit(0 if has_ended else _STOPPED)
