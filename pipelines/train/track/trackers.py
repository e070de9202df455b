"""Trackers: TensorBoard, MLflow and W&B observe a run; nothing in the run depends on them.
 A resumed run sends a tracker every line of metrics.jsonl that it does not have yet, so no tracker
has a gap or a step twice.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.core.errors import UserError, one_line

_LOG = logging.getLogger(__name__)
_FLUSH_S, _BATCH = 2.0, 500  # MLflow accepts at most 1,000 values in one request


class Tracker(Protocol):
    """Receives a run's metrics. `last_step` is the last step that it has from an earlier start."""

    last_step: int

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a step, without numbers that are not finite."""
        ...

    def close(self, finished: bool) -> None:
        """The run has ended; `finished` is False if it broke off."""
        ...


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError if a tracker's package is not installed here."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.trackers names {name}, which is not installed: pip install {name}, or "
                "leave it out"
            )


def open_trackers(names: Sequence[str], folder: Path, run_info: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a run that writes to `folder`; `run_info` has its "run_id" and "recipe".

    Raises UserError if a tracker's package is not installed or its server cannot be reached.
    """
    check_trackers(names)
    classes = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}
    return [classes[name](folder, run_info) for name in names]


class _TensorBoard:
    """Each start writes all steps again, because a killed worker loses buffered events.

    `purge_step` makes readers ignore the events of earlier starts.
    """

    last_step = 0

    def __init__(self, folder: Path, run_info: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self, finished: bool) -> None:
        self._writer.close()


class _MLflow:
    """Writes to MLFLOW_TRACKING_URI, or to a file in the run's folder if that is not set.

    The tag `loraforge.run` finds MLflow's run again. Values are sent together every few seconds.
    After a server's first failure no more calls are made: each could block a training step.
    """

    def __init__(self, folder: Path, run_info: Mapping[str, Any]) -> None:
        mlflow: Any = importlib.import_module("mlflow")

        uri = (
            os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        )
        self._client: Any = mlflow.MlflowClient(uri)
        self._errors, self._failed = mlflow.exceptions.MlflowException, False
        self._metric, self._pending, self._sent = mlflow.entities.Metric, [], time.monotonic()
        try:
            self._run, is_new = self._find(run_info["recipe"]["name"], run_info["run_id"])
            if is_new:
                params = {
                    f"{section}.{key}": value
                    for section in ("model", "lora", "train")
                    for key, value in run_info["recipe"][section].items()
                }
                self._client.log_batch(
                    self._run, params=[mlflow.entities.Param(k, str(v)) for k, v in params.items()]
                )
            history = [] if is_new else self._client.get_metric_history(self._run, "lr")
        except self._errors as error:
            raise UserError(
                f"train.trackers: MLflow at {uri} cannot be used ({one_line(error, 200)}); "
                "set MLFLOW_TRACKING_URI to a server that answers, or leave mlflow out"
            ) from error
        self.last_step = max((metric.step for metric in history), default=0)

    def _find(self, name: str, run_id: str) -> tuple[str, bool]:
        """MLflow's id of this run, and whether the run is new there."""
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(name)
        )
        runs = self._client.search_runs([experiment_id], f"tags.`loraforge.run` = '{run_id}'")
        if not runs:
            created = self._client.create_run(
                experiment_id, tags={"loraforge.run": run_id}, run_name=run_id[:12]
            )
            return created.info.run_id, True
        self._client.update_run(runs[0].info.run_id, status="RUNNING")
        return runs[0].info.run_id, False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._pending += [self._metric(name, value, now, step) for name, value in values.items()]
        if time.monotonic() - self._sent > _FLUSH_S or len(self._pending) > _BATCH:
            self._call(lambda: self._client.log_batch(self._run, metrics=self._pending))
            self._pending, self._sent = [], time.monotonic()

    def close(self, finished: bool) -> None:
        self._call(lambda: self._client.log_batch(self._run, metrics=self._pending))
        self._call(
            lambda: self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")
        )

    def _call(self, call: Any) -> None:
        if self._failed:
            return
        try:
            call()
        except self._errors as error:
            _LOG.warning("MLflow failed, the run continues without it: %s", one_line(error, 200))
            self._failed = True


class _WandB:
    """Respects WANDB_PROJECT, WANDB_MODE and WANDB_API_KEY.

    W&B gets our run id, so it resumes the same run. Offline, each start of the run leaves a folder;
    the last one has all steps.
    """

    def __init__(self, folder: Path, run_info: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")

        recipe = run_info["recipe"]
        project = os.environ.get("WANDB_PROJECT", "loraforge")
        identity = {"id": run_info["run_id"][:12], "name": recipe["name"], "resume": "allow"}
        settings = wandb.Settings(console="off", disable_git=True)
        try:
            self._run = wandb.init(
                project=project, dir=str(folder), config=dict(recipe), settings=settings, **identity
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"train.trackers: W&B cannot be used ({one_line(error, 200)}); "
                "set WANDB_API_KEY, or WANDB_MODE=offline, or leave wandb out"
            ) from error
        self.last_step = max(0, self._run.starting_step - 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(0 if finished else 1)
