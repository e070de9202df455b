"""A run whose node is announced to be reclaimed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.train.checkpoint.files import latest_verified
from pipelines.train.track.metrics_log import read_metrics
from pipelines.train.worker import WorkerArgs
from tests.chaos.checks import losses_of
from tests.chaos.faults import Faults
from tests.chaos.harness import attempt
from tests.small_run import fresh_args


def resumed_step(args: WorkerArgs) -> int:
    """The step that the run resumes from, once it has resumed and finished."""
    checkpoint, damaged = latest_verified(args.store, args.run_id)
    assert not damaged
    assert attempt(args, 2).finished
    return checkpoint.step if checkpoint else 0


def test_an_announcement_without_a_deadline_saves_at_once(
    pocket_base: str, tmp_path: Path, unbroken_losses: list[float]
) -> None:
    """The end of the node is announced after step 5, and it comes in step 6."""
    args = fresh_args(pocket_base, tmp_path)
    assert not attempt(args, 2, Faults(rank=1, preempt_at_step=5, kill_at_step=6)).finished
    assert resumed_step(args) == 5
    assert losses_of(args) == pytest.approx(unbroken_losses, rel=1e-6)


def test_an_announcement_with_a_deadline_loses_no_step(
    pocket_base: str, tmp_path: Path, unbroken_losses: list[float]
) -> None:
    """The deadline is near after step 4: all ranks save and stop, and no step is done again."""
    args = fresh_args(pocket_base, tmp_path)
    outcome = attempt(args, 2, Faults(preempt_at_step=4, preempt_in_s=3))
    assert not outcome.finished and outcome.stopped
    assert [line["step"] for line in read_metrics(args.folder)] == [1, 2, 3, 4]
    assert resumed_step(args) == 4
    assert losses_of(args) == pytest.approx(unbroken_losses, rel=1e-6)
