"""`loraforge train --dry-run`: says what matters, writes nothing, and refuses what the run would refuse."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from jobs.cli import app
from pipelines.contracts import UserError

RECIPE = str(Path(__file__).parents[3] / "recipes" / "pocket_lora_person_cpu.yaml")


def test_dry_run_shows_rows_parameters_memory_and_time(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["train", RECIPE, "--store", str(tmp_path), "--dry-run", "-s", "lora.dora=true"])
    assert shown.exit_code == 0, shown.output
    for part in ("q_proj", "115,456 of 1,771,200", "optimizer", "TFLOP/s", "lora.dora trains", "loraforge prepare"):
        assert part in shown.output
    assert list(tmp_path.iterdir()) == []


def test_dry_run_refuses_targets_that_are_not_there(tmp_path: Path) -> None:
    given = ["train", RECIPE, "--store", str(tmp_path), "--dry-run", "-s", "lora.targets=[wq]"]
    error = CliRunner().invoke(app, given).exception
    assert isinstance(error, UserError) and "q_proj" in str(error)
