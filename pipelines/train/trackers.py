"""Trackers only observe: each is told a run's metrics by step, and nothing of a run depends on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.contracts import UserError


class Tracker(Protocol):
    """Something that is told numbers."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def open_trackers(names: Sequence[str], folder: Path, first_step: int, about: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a run, going on where it stood after `first_step`. `about` holds its "run_id" and "recipe".

    Raises UserError when a tracker's package is not installed.
    """
    known = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}
    return [known[name](folder, first_step, about) for name in names]


def _missing(name: str, error: ImportError) -> UserError:
    return UserError(
        f"train.trackers names {name}, which cannot be imported ({error}): pip install {name}, or leave it out"
    )


class _TensorBoard:
    def __init__(self, folder: Path, first_step: int, about: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """Goes to MLFLOW_TRACKING_URI, or else to a folder in the run's own. The run's tag `loraforge.run` finds it again."""

    def __init__(self, folder: Path, first_step: int, about: Mapping[str, Any]) -> None:
        try:
            import mlflow  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing("mlflow", error) from error
        client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}")
        recipe, run_id = about["recipe"], about["run_id"]
        found = client.get_experiment_by_name(recipe["name"])
        experiment = found.experiment_id if found else client.create_experiment(recipe["name"])
        runs = client.search_runs([experiment], f"tags.`loraforge.run` = '{run_id}'")
        run = runs[0] if runs else client.create_run(experiment, tags={"loraforge.run": run_id})
        self._client, self._run = client, run.info.run_id
        if not runs:
            for section in ("model", "lora", "train"):
                for key, value in recipe[section].items():
                    client.log_param(self._run, f"{section}.{key}", value)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _WandB:
    """WANDB_PROJECT, WANDB_MODE and WANDB_API_KEY are honoured; the run's id is ours, so a resumed run goes on."""

    def __init__(self, folder: Path, first_step: int, about: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing("wandb", error) from error
        recipe = about["recipe"]
        project = os.environ.get("WANDB_PROJECT", "loraforge")
        identity = {"id": about["run_id"][:12], "name": recipe["name"], "resume": "allow"}
        self._run = wandb.init(project=project, dir=str(folder), config=dict(recipe), **identity)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
