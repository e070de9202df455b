"""A run's workers on Ray Train: started together, restarted after a failure or a preemption.
 Ray keeps its own list of a run's checkpoints. Here that list is only a cache, deleted at every
start: the store's manifests decide where a run resumes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.core.digests import short
from pipelines.core.errors import RetryError, UserError
from pipelines.train.faults.failures import FailureLog, reason_of, was_preempted
from pipelines.train.worker import WorkerArgs, train_rank

_RAY_CHECKPOINT_LIST = "checkpoint_manager_snapshot.json"
_MAX_HEALTH_TIMEOUT_S = 600.0  # Ray Train's default
_ELASTIC_START_TIMEOUT_S = "10"


def fit(args: WorkerArgs) -> None:
    """Run the workers until the run has ended. Ray must be initialised.

    Raises UserError for an error that a worker reports as the user's, and if workers died more
    often than `train.max_failures` allows.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    resources, train = args.recipe.resources, args.recipe.train
    delete_ray_checkpoint_list(args.folder)
    elastic = resources.min_workers != resources.max_workers
    num_workers = (
        (resources.min_workers, resources.max_workers) if elastic else resources.max_workers
    )
    _set_timeouts(elastic, train.hang_timeout_s)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"args": args},
        torch_config=TorchConfig(
            backend="nccl" if resources.gpus_per_worker else "gloo",
            timeout_s=math.ceil(train.hang_timeout_s),
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            elastic_resize_monitor_interval_s=resources.resize_every_s,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": resources.cpus_per_worker,
                "GPU": resources.gpus_per_worker,
            },
        ),
        run_config=ray.train.RunConfig(
            name=short(args.run_id),
            storage_path=str(args.folder.parent),
            failure_config=ray.train.FailureConfig(
                max_failures=train.max_failures, max_preemption_failures=train.max_preemptions
            ),
            callbacks=[_failure_callback(FailureLog(args.folder))],
        ),
    )
    try:
        user_error = trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        failures = error.worker_failures.items()
        reasons = "; ".join(f"worker {rank}: {reason_of(failure)}" for rank, failure in failures)
        raise RetryError(
            f"{args.folder}: workers failed more often than train.max_failures="
            f"{train.max_failures} allows, at last ({reasons}). The saved checkpoints are kept and "
            "the same command resumes from them; -v shows what the workers wrote"
        ) from error
    if user_error:
        raise UserError(user_error)


def delete_ray_checkpoint_list(folder: Path) -> None:
    """Delete Ray's list of a run's checkpoints.

    Ray writes it in place, so a kill can truncate it, and Ray Train refuses to start with a damaged
    one.
    """
    (folder / _RAY_CHECKPOINT_LIST).unlink(missing_ok=True)


def _set_timeouts(elastic: bool, hang_timeout_s: float) -> None:
    """Set timeouts that Ray Train reads from the driver's environment; existing values stay."""
    # A worker that does not answer a health check for `hang_timeout_s` counts as dead. This also
    # ends a run whose workers all hang, where no watchdog may fire because the machine itself is
    # stuck.
    os.environ.setdefault(
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(min(_MAX_HEALTH_TIMEOUT_S, hang_timeout_s))
    )
    # For some seconds after a node's death Ray still counts its CPUs as free, and an elastic run
    # would wait long for workers there. Give up soon and count again.
    if elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _ELASTIC_START_TIMEOUT_S)


def _failure_callback(log: FailureLog) -> Any:
    """A callback of Ray Train's controller that logs worker failures into the run's folder."""
    import ray.train

    class LogFailures(ray.train.UserCallback):
        """Logs why workers ended."""

        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            """Log the errors of failed workers; rank 0 has logged a preemption itself."""
            if any(was_preempted(error) for error in worker_exceptions.values()):
                return
            log.failed({rank: reason_of(error) for rank, error in worker_exceptions.items()})

    return LogFailures()


def _worker(config: dict[str, Any]) -> str | None:
    """One rank. Returns the text of a UserError, because Ray would retry after an exception."""
    import torch
    from ray.exceptions import RayActorError
    from ray.train.torch import get_device

    args: WorkerArgs = config["args"]
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(args.recipe.resources.cpus_per_worker)))
    try:
        has_ended = train_rank(args, device, _RayChannel(FailureLog(args.folder)))
    except UserError as error:
        return str(error)
    if not has_ended:
        # Only this exception makes Ray Train restart at once and count a preemption. A worker that
        # returns has finished the run, and any other exception counts as a failure.
        raise RayActorError(
            error_msg="saved and stopped, because a node will be taken away", preempted=True
        )
    return None


class _RayChannel:
    """Reports to Ray Train and asks it for preemptions."""

    def __init__(self, log: FailureLog) -> None:
        self._log, self._announced = log, False

    def report(self, metrics: Mapping[str, float], checkpoint_uri: str | None) -> None:
        import ray.train

        checkpoint = ray.train.Checkpoint(checkpoint_uri) if checkpoint_uri else None
        # The checkpoint is in the store already: Ray must neither copy nor delete it.
        no_upload = ray.train.CheckpointUploadMode.NO_UPLOAD
        ray.train.report(dict(metrics), checkpoint=checkpoint, checkpoint_upload_mode=no_upload)

    def seconds_left(self) -> float | None:
        import ray.train

        preemption = ray.train.get_preemption_info()
        if preemption is None:
            return None
        deadline_ms = preemption.deadline_ms
        left_s = math.inf if deadline_ms is None else deadline_ms / 1000 - time.time()
        if not self._announced and ray.train.get_context().get_world_rank() == 0:
            self._log.announced(preemption.preempted_ranks, left_s)
        self._announced = True
        return left_s
