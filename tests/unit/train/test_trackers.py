"""What trackers have after a run that broke off and resumed: every step once, in order."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipelines.config.load import load_recipe
from pipelines.core.errors import UserError
from pipelines.train.track import trackers
from pipelines.train.track.metrics_log import MetricsLog, read_metrics

RECIPE = Path(__file__).parents[3] / "recipes" / "pocket_lora_person_cpu.yaml"
RUN_ID = "ab" * 32


def run_info() -> dict[str, Any]:
    return {"recipe": load_recipe(RECIPE).model_dump(mode="json"), "run_id": RUN_ID}


def broken_then_finished(folder: Path, names: list[str]) -> list[int]:
    """Log eight steps, a kill, and steps 6 to 12 after a resume.

    The third loss is not finite. Returns the steps in metrics.jsonl.
    """
    log = MetricsLog(folder, 0, names, run_info())
    for step in range(1, 9):
        log.write(step, {"loss": float("nan") if step == 3 else 100.0 + step, "lr": 1e-3})
    log = MetricsLog(folder, 5, names, run_info())
    for step in range(6, 13):
        heldout = {"heldout_loss": 9.0} if step == 12 else {}
        log.write(step, {"loss": 200.0 + step, "lr": 1e-3} | heldout)
    log.close()
    return [line["step"] for line in read_metrics(folder)]


LOSSES = [
    (1, 101.0),
    (2, 102.0),
    (4, 104.0),
    (5, 105.0),
    *((step, 200.0 + step) for step in range(6, 13)),
]


def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert broken_then_finished(tmp_path, ["tensorboard"]) == list(range(1, 13))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == LOSSES
    assert [e.step for e in board.Scalars("train/lr")] == list(range(1, 13))
    assert [e.step for e in board.Scalars("train/heldout_loss")] == [12]


def test_mlflow_has_every_step_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    broken_then_finished(tmp_path, ["mlflow"])
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pocket-person")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["lora.r"] == "8"
    history = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
    # MLflow keeps the values that it got after the checkpoint; all steps are there, in order.
    assert sorted(history) == history
    assert [step for step, _ in history] == [step for step, _ in LOSSES]


def test_wandb_writes_all_steps_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    broken_then_finished(tmp_path, ["wandb"])
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{RUN_ID[:12]}/*.wandb"))
    assert files and b"heldout_loss" in files[-1].read_bytes()


class Server:
    """The part of MLflow that the tracker calls; `down` makes every call fail."""

    def __init__(self) -> None:
        self.metrics: list[Any] = []
        self.runs: list[Any] = []
        self.params: dict[str, str] = {}
        self.status, self.down, self.requests = "", False, 0

    def as_module(self) -> ModuleType:
        module: Any = ModuleType("mlflow")
        module.exceptions = SimpleNamespace(MlflowException=ConnectionError)
        module.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: SimpleNamespace(
                key=key, value=value, step=step
            ),
            Param=lambda key, value: SimpleNamespace(key=key, value=value),
        )
        module.MlflowClient = lambda uri: self
        return module

    def _request(self) -> None:
        self.requests += 1
        if self.down:
            raise ConnectionError("nobody\nanswers")

    def get_experiment_by_name(self, name: str) -> Any:
        self._request()
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, experiments: list[str], query: str) -> list[Any]:
        return self.runs

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        self.runs.append(SimpleNamespace(info=SimpleNamespace(run_id="r")))
        return self.runs[0]

    def update_run(self, run_id: str, status: str) -> None:
        self.status = status

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [metric for metric in self.metrics if metric.key == key]

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self._request()
        assert len(metrics) <= 1000
        self.metrics += metrics
        self.params |= {param.key: param.value for param in params}

    def set_terminated(self, run_id: str, status: str) -> None:
        self._request()
        self.status = status


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setitem(__import__("sys").modules, "mlflow", server.as_module())
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    return server


def test_values_are_sent_together_and_values_that_a_kill_lost_are_sent_again(
    server: Server, tmp_path: Path
) -> None:
    assert broken_then_finished(tmp_path, ["mlflow"]) == list(range(1, 13))
    losses = [(m.step, m.value) for m in server.metrics if m.key == "loss"]
    assert losses == LOSSES and server.status == "FINISHED" and server.params["train.lr"] == "0.003"
    assert server.requests < 12, "fewer requests than steps"


def test_a_long_history_is_sent_in_requests_that_the_server_accepts(
    server: Server, tmp_path: Path
) -> None:
    lines = (
        json.dumps({"step": step, "loss": 1.0, "lr": 1.0, "grad_norm": 1.0})
        for step in range(1, 2001)
    )
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    MetricsLog(tmp_path, 2000, ["mlflow"], run_info()).close()
    assert [m.step for m in server.metrics if m.key == "loss"] == list(range(1, 2001))


def test_a_server_that_fails_during_a_run_does_not_disturb_it(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trackers, "_FLUSH_S", 0.0)
    log = MetricsLog(tmp_path, 0, ["mlflow"], run_info())
    log.write(1, {"loss": 1.0, "lr": 1.0})
    server.down = True
    for step in range(2, 9):
        log.write(step, {"loss": 1.0, "lr": 1.0})
    requests = server.requests
    log.close(finished=False)
    assert len(read_metrics(tmp_path)) == 8
    assert server.requests == requests, "no more requests after the first failure"
    assert [r.message for r in caplog.records] == [
        "MLflow failed, the run continues without it: nobody answers"
    ]


def test_a_server_that_is_down_at_the_start_is_a_user_error(server: Server, tmp_path: Path) -> None:
    server.down = True
    with pytest.raises(
        UserError,
        match=r"MLflow at sqlite:///.*cannot be used \(nobody answers\); set MLFLOW_TRACKING",
    ):
        MetricsLog(tmp_path, 0, ["mlflow"], run_info())


def test_a_tracker_that_is_not_installed_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="train.trackers names wandb, which is not installed: pip install wandb, or"
    ):
        trackers.check_trackers(["wandb"])
