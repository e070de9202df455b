"""Disks that are full, or refuse to write for one rank only."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.train import stage
from pipelines.train.checkpoint.files import check_space
from pipelines.train.track.metrics_log import read_metrics
from tests.chaos.checks import NUM_STEPS, check_samples, losses_of
from tests.chaos.faults import Faults
from tests.chaos.harness import attempt
from tests.small_run import PickledFeed, fresh_args
from tests.stages import train


def test_a_full_disk_is_noticed_before_a_checkpoint_is_written(
    pocket_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = fresh_args(pocket_base, tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(UserError, match=r"1 MiB free, and the next checkpoint wants 30 MiB"):
        check_space(args.store, 1_000_000)


def test_a_run_does_not_start_without_space_for_a_checkpoint(
    pocket_base: str, tmp_path: Path
) -> None:
    args = fresh_args(pocket_base, tmp_path)
    outcome = attempt(args, 2, Faults(free_bytes=1 << 20))
    assert outcome.codes == [0, 0]
    assert len(outcome.errors) == 2 and len(set(outcome.errors)) == 1
    assert "1 MiB free, and the next checkpoint wants" in outcome.errors[0]
    assert read_metrics(args.folder) == []


@pytest.mark.parametrize("rank", [0, 1], ids=["metrics", "samples"])
def test_a_write_that_one_ranks_disk_refuses_ends_all_ranks_with_the_same_error(
    rank: int, pocket_base: str, tmp_path: Path, unbroken_losses: list[float]
) -> None:
    """After step 4 no file of one rank can grow. The same command resumes the run later."""
    args = fresh_args(pocket_base, tmp_path, train={"save_every": 10})
    outcome = attempt(args, 2, Faults(rank=rank, refuse_writes_at_step=4))
    assert outcome.codes == [0, 0] and len(outcome.errors) == 2
    assert outcome.errors[0] == outcome.errors[1]
    assert str(args.folder) in outcome.errors[0]
    assert "larger than a file may be here" in outcome.errors[0]
    assert len(read_metrics(args.folder)) in (3, 4)
    assert attempt(args, 2).finished
    assert losses_of(args) == pytest.approx(unbroken_losses, rel=1e-6)
    check_samples(args)


def test_a_disk_that_is_full_when_the_run_ends(
    pocket_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps are done but the artifact cannot be written: a UserError.

    With free space the same call completes the run.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        args = fresh_args(pocket_base, disk / "store")
        assert attempt(args, 1).finished
        monkeypatch.setattr(stage, "_key", lambda *_: args.run_id)
        free = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(b"x" * free)
        full = r"store/.*: the disk is full \(0 MiB free, \d+ MiB wanted\)"
        with pytest.raises(UserError, match=full):
            train(args.recipe, args.store, args.prepared, PickledFeed, SILENT, lambda _: None)
        (disk / "ballast").unlink()
        run = train(args.recipe, args.store, args.prepared, PickledFeed, SILENT, lambda _: None)
        assert run.num_steps == NUM_STEPS
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
