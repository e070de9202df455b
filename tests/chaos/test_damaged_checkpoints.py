"""A run skips damaged checkpoints, and notices if its ranks see different stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.storage import MANIFEST
from pipelines.train.checkpoint.files import latest_verified, list_checkpoints
from pipelines.train.faults.failures import read_failures
from tests.chaos.checks import losses_of
from tests.chaos.faults import Faults
from tests.chaos.harness import attempt
from tests.small_run import fresh_args


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    pocket_base: str, tmp_path: Path, unbroken_losses: list[float]
) -> None:
    """Each file of the newest checkpoint is truncated, emptied and bit-flipped in turn.

    Each time the damage is found and named and the checkpoint before is used. A run that starts
    with the damage notes it in its failures.jsonl, which a user sees.
    """
    args = fresh_args(pocket_base, tmp_path, train={"keep": 5})
    assert not attempt(args, 2, Faults(kill_at_step=8)).finished
    older, newest = list_checkpoints(args.store, args.run_id)
    assert (older.step, newest.step) == (3, 6)
    folder = Path(newest.ref.uri)
    manifest = folder / MANIFEST
    others = [path for path in folder.rglob("*") if path.is_file() and path != manifest]
    for file in [*others, manifest]:  # the manifest last: its damage stays
        intact = file.read_bytes()
        middle = len(intact) // 2
        if file == manifest:
            middle = intact.index(b'"updates": 6') + 11  # the digit 6
        flipped = intact[:middle] + bytes([intact[middle] ^ 1]) + intact[middle + 1 :]
        for damaged_bytes in (intact[:middle], b"", flipped):
            file.write_bytes(damaged_bytes)
            checkpoint, damaged = latest_verified(args.store, args.run_id)
            assert checkpoint == older
            assert len(damaged) == 1 and file.name in damaged[0]
        if file != manifest:
            file.write_bytes(intact)
    assert attempt(args, 2).finished
    assert losses_of(args) == pytest.approx(unbroken_losses, rel=1e-6)
    assert [c.step for c in list_checkpoints(args.store, args.run_id)] == [3, 6, 9, 10]
    failures = read_failures(args.folder)
    assert len(failures) == 1 and str(manifest) in failures[0]


def test_a_rank_that_does_not_see_the_checkpoint_ends_the_run(
    pocket_base: str, tmp_path: Path, unbroken_losses: list[float]
) -> None:
    """A store that is another folder on the second node is an error at the start of all ranks.

    Without it the ranks would train different steps.
    """
    args = fresh_args(pocket_base, tmp_path)
    assert not attempt(args, 2, Faults(kill_at_step=5)).finished
    outcome = attempt(args, 2, Faults(rank=1, other_store=tmp_path / "other"))
    assert outcome.codes == [0, 0] and len(set(outcome.errors)) == 1
    assert "rank 0 resumes from step 3" in outcome.errors[0]
    assert "all nodes share" in outcome.errors[0]
    assert attempt(args, 2).finished
    assert losses_of(args) == pytest.approx(unbroken_losses, rel=1e-6)
