"""A run's workers on Ray Train: started together, started again after a death, told of a node's end, and ended by a mistake.

Ray's snapshot of its bookkeeping is only a cache and is dropped at every start; the store's manifests decide.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.core.digests import short
from pipelines.core.errors import UserError
from pipelines.train.faults.failures import FailureLog, reason_of, was_preempted
from pipelines.train.worker import WorkerArgs, train_rank

_SNAPSHOT = "checkpoint_manager_snapshot.json"


def fit(plan: WorkerArgs) -> None:
    """Run the plan's workers until the run has ended; Ray must be initialised.

    Raises UserError for what a worker found that a person can mend, and when workers died more often than the recipe
    allows.
    """
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
            backend="nccl" if want.gpus_per_worker else "gloo",
            timeout_s=math.ceil(train.hang_timeout_s),
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
        why = "; ".join(
            f"worker {rank}: {reason_of(failure)}"
            for rank, failure in error.worker_failures.items()
        )
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
    os.environ.setdefault(
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(min(600.0, hang_timeout_s))
    )
    if elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")


def _failure_notes(log: FailureLog) -> Any:
    """Ray Train's callback in its controller that writes failures into the run's folder."""
    import ray.train

    class Notes(ray.train.UserCallback):
        """Writes down what ended workers."""

        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            if not any(
                was_preempted(error) for error in worker_exceptions.values()
            ):  # else rank 0 has said it already
                log.failed({rank: reason_of(error) for rank, error in worker_exceptions.items()})

    return Notes()


def _worker(config: dict[str, Any]) -> str | None:
    """One rank. A mistake of the user's comes back as its text, because Ray would retry an exception."""
    import torch
    from ray.exceptions import RayActorError
    from ray.train.torch import get_device

    plan: WorkerArgs = config["plan"]
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
        raise RayActorError(
            error_msg="saved and stopped, because a node will be taken away", preempted=True
        )
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
