"""Whenever a worker is killed, the resumed run has the curve and samples of an unbroken one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipelines.train.checkpoint.files import latest_verified, list_checkpoints
from tests.chaos.checks import (
    NUM_STEPS,
    SAVE_EVERY,
    check_samples,
    losses_of,
    unfinished_folders,
)
from tests.chaos.faults import Faults
from tests.chaos.harness import attempt
from tests.small_run import fresh_args


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_random_kills_cost_at_most_one_save_interval(
    kills: int, pocket_base: str, tmp_path: Path, unbroken_losses: list[float]
) -> None:
    """SIGKILL of a random rank at a random step, again and again."""
    args, random_numbers = fresh_args(pocket_base, tmp_path), random.Random(kills)
    for _ in range(kills):
        reached = latest_verified(args.store, args.run_id)[0]
        ahead = random_numbers.randint(1, SAVE_EVERY + 1)
        at = min(NUM_STEPS, (reached.step if reached else 0) + ahead)
        faults = Faults(rank=random_numbers.randrange(2), kill_at_step=at)
        assert not attempt(args, 2, faults).finished
        last = latest_verified(args.store, args.run_id)[0]
        # The step `at` itself is one of those that are done again.
        assert at - (last.step if last else 0) <= SAVE_EVERY
    assert attempt(args, 2).finished
    assert losses_of(args) == pytest.approx(unbroken_losses, rel=1e-6)
    check_samples(args)


@pytest.mark.parametrize(
    "share",
    [0.9, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.001, 0.1, 0.3, 0.6))],
    ids=lambda s: f"at{s}",
)
def test_a_kill_during_a_checkpoint_write_leaves_no_checkpoint(
    share: float, pocket_base: str, tmp_path: Path, unbroken_losses: list[float]
) -> None:
    """The kernel ends rank 0 when a file passes this share of the size of the state file."""
    complete = fresh_args(pocket_base, tmp_path / "complete", train={"max_steps": SAVE_EVERY})
    assert attempt(complete, 2).finished
    checkpoint = list_checkpoints(complete.store, complete.run_id)[0]
    size = (Path(checkpoint.ref.uri) / "state.safetensors").stat().st_size
    args = fresh_args(pocket_base, tmp_path / "broken")
    assert not attempt(args, 2, Faults(die_at_byte=int(share * size))).finished
    assert list_checkpoints(args.store, args.run_id) == []
    assert latest_verified(args.store, args.run_id) == (None, [])
    assert attempt(args, 2).finished
    assert losses_of(args) == pytest.approx(unbroken_losses, rel=1e-6)
    assert not unfinished_folders(args)


def test_an_unfinished_checkpoint_that_is_never_written_again_is_deleted(
    pocket_base: str, tmp_path: Path
) -> None:
    """Rank 0 dies in the extra save that a preemption causes at step 2.

    The resumed run saves at steps 3, 6, ... only, so no later save replaces that folder.
    """
    args = fresh_args(pocket_base, tmp_path)
    assert not attempt(args, 2, Faults(preempt_at_step=2, die_at_byte=50_000)).finished
    assert unfinished_folders(args)
    assert attempt(args, 2).finished
    assert not [path for path in args.folder.iterdir() if path.name.startswith(".")]


def test_a_run_resumes_on_one_rank_and_then_on_two_again(
    pocket_base: str, tmp_path: Path, unbroken_losses: list[float]
) -> None:
    args = fresh_args(pocket_base, tmp_path)
    assert not attempt(args, 2, Faults(kill_at_step=4)).finished
    assert not attempt(args, 1, Faults(kill_at_step=7)).finished
    assert attempt(args, 2).finished
    assert losses_of(args) == pytest.approx(unbroken_losses, rel=1e-5)
    check_samples(args)


def test_a_worker_that_hangs_is_ended_and_the_run_resumes(
    pocket_base: str, tmp_path: Path, unbroken_losses: list[float]
) -> None:
    args = fresh_args(pocket_base, tmp_path, train={"hang_timeout_s": 15.0})
    assert not attempt(args, 2, Faults(rank=1, hang_at_step=5)).finished
    assert attempt(args, 2).finished
    assert losses_of(args) == pytest.approx(unbroken_losses, rel=1e-6)
