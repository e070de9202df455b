"""Trackers only observe: each is told a run's metrics by step, and nothing of a run depends on them.

A run that goes on tells them all that metrics.jsonl holds and they do not, so none has a gap or a step twice.
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

from pipelines.core.errors import UserError

_LOG = logging.getLogger(__name__)
_FLUSH_S, _BATCH = 2.0, 500  # MLflow takes at most 1,000 values a request


class Tracker(Protocol):
    """Something that is told numbers. `held` is the last step that it knows already from an earlier start of the run."""

    held: int

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, finished: bool) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError, before anything starts, when a tracker's package is not installed here."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.trackers names {name}, which is not installed: pip install {name}, or leave it out"
            )


def open_trackers(names: Sequence[str], folder: Path, about: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a run that writes to `folder`. `about` holds its "run_id" and "recipe".

    Raises UserError when a tracker's package is not installed or it cannot be reached.
    """
    check_trackers(names)
    known = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}
    return [known[name](folder, about) for name in names]


class _TensorBoard:
    """Events are lost when a worker is killed, so each start writes the whole run again and voids what was before."""

    held = 0

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self, finished: bool) -> None:
        self._writer.close()


class _MLflow:
    """Goes to MLFLOW_TRACKING_URI, or else to a file in the run's folder. The run's tag `loraforge.run` finds it again.

    Values go out together every few seconds. A server that fails on the way is left alone from then on.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        mlflow: Any = importlib.import_module("mlflow")

        uri = (
            os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        )
        self._client: Any = mlflow.MlflowClient(uri)
        self._failures, self._broken = mlflow.exceptions.MlflowException, False
        self._metric, self._pending, self._sent = mlflow.entities.Metric, [], time.monotonic()
        try:
            self._run, new = self._find(about["recipe"]["name"], about["run_id"])
            if new:
                params = {
                    f"{s}.{k}": v
                    for s in ("model", "lora", "train")
                    for k, v in about["recipe"][s].items()
                }
                self._client.log_batch(
                    self._run, params=[mlflow.entities.Param(k, str(v)) for k, v in params.items()]
                )
            told = [] if new else self._client.get_metric_history(self._run, "lr")
        except self._failures as error:
            raise UserError(
                f"train.trackers: MLflow at {uri} cannot be used ({' '.join(str(error).split())[:200]}); "
                "set MLFLOW_TRACKING_URI to one that answers, or leave it out"
            ) from error
        self.held = max((metric.step for metric in told), default=0)

    def _find(self, name: str, run_id: str) -> tuple[str, bool]:
        """MLflow's id of this run, made when there is none, and whether it was."""
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        runs = self._client.search_runs([experiment], f"tags.`loraforge.run` = '{run_id}'")
        if not runs:
            return self._client.create_run(
                experiment, tags={"loraforge.run": run_id}, run_name=run_id[:12]
            ).info.run_id, True
        self._client.update_run(runs[0].info.run_id, status="RUNNING")
        return runs[0].info.run_id, False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._pending += [self._metric(name, value, now, step) for name, value in values.items()]
        if time.monotonic() - self._sent > _FLUSH_S or len(self._pending) > _BATCH:
            self._tell(lambda: self._client.log_batch(self._run, metrics=self._pending))
            self._pending, self._sent = [], time.monotonic()

    def close(self, finished: bool) -> None:
        self._tell(lambda: self._client.log_batch(self._run, metrics=self._pending))
        self._tell(
            lambda: self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")
        )

    def _tell(self, call: Any) -> None:
        if self._broken:
            return
        try:
            call()
        except self._failures as error:
            _LOG.warning(
                "MLflow failed, the run goes on without it: %s", " ".join(str(error).split())[:200]
            )
            self._broken = True


class _WandB:
    """WANDB_PROJECT, WANDB_MODE and WANDB_API_KEY are honoured; the run's id is ours, so a resumed run goes on.

    Offline every start of the run leaves a folder; the last one holds all of it.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")

        recipe = about["recipe"]
        project = os.environ.get("WANDB_PROJECT", "loraforge")
        identity = {"id": about["run_id"][:12], "name": recipe["name"], "resume": "allow"}
        settings = wandb.Settings(console="off", disable_git=True)
        try:
            self._run = wandb.init(
                project=project, dir=str(folder), config=dict(recipe), settings=settings, **identity
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"train.trackers: W&B cannot be used ({' '.join(str(error).split())[:200]}); "
                "set WANDB_API_KEY, or WANDB_MODE=offline, or leave it out"
            ) from error
        self.held = max(0, self._run.starting_step - 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(0 if finished else 1)
