"""Whatever kills a worker and whenever: the run goes on, its curve is the uninterrupted one's, no sample is lost or seen twice."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.storage import MANIFEST, Store
from pipelines.train import stage
from pipelines.train.checkpoint.files import check_space, latest_verified, list_checkpoints
from pipelines.train.faults.failures import read_failures
from pipelines.train.track.metrics_log import read_metrics, read_samples
from tests.chaos.harness import (
    Faults,
    Outcome,
    PickledFeed,
    WorkerArgs,
    attempt,
    plan_of,
    prepared_dataset,
    recipe_for,
)

NUM_STEPS, SAVE_EVERY = 10, 3  # two epochs of ten rows, two a step


def fresh_plan(base: str, folder: Path, **sections: Any) -> WorkerArgs:
    store = Store(folder)
    return plan_of(recipe_for(base, **sections), store, prepared_dataset(store, base))


def losses_of(plan: WorkerArgs) -> list[float]:
    lines = read_metrics(plan.folder)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def check_samples(plan: WorkerArgs) -> None:
    steps = read_samples(plan.folder)
    for epoch in (range(1, 6), range(6, 11)):
        seen = Counter(name for step in epoch for name in steps[step])
        assert set(seen.values()) == {1} and len(seen) == plan.prepared.train.num_samples


@pytest.fixture(scope="module")
def unbroken(pocket_base: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    plan = fresh_plan(pocket_base, tmp_path_factory.mktemp("unbroken"))
    assert attempt(plan, 2).fine
    check_samples(plan)
    losses = losses_of(plan)
    assert losses[-1] < 0.1 * losses[0]
    return losses


def resume_after(plan: WorkerArgs, broken: Outcome, world_size: int = 2) -> int:
    """The step from which the run goes on after `broken`, once it has gone on to the end."""
    assert not broken.fine
    checkpoint, damaged = latest_verified(plan.store, plan.run_id)
    assert not damaged
    assert attempt(plan, world_size).fine
    return checkpoint.step if checkpoint else 0


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_random_kills(kills: int, pocket_base: str, tmp_path: Path, unbroken: list[float]) -> None:
    """SIGKILL of a random rank at a random step, again and again, at most one save interval ahead each time."""
    plan, dice = fresh_plan(pocket_base, tmp_path), random.Random(kills)
    for _ in range(kills):
        reached = latest_verified(plan.store, plan.run_id)[0]
        at = min(NUM_STEPS, (reached.step if reached else 0) + dice.randint(1, SAVE_EVERY + 1))
        outcome = attempt(plan, 2, Faults(rank=dice.randrange(2), kill_at_step=at))
        assert not outcome.fine
        last = latest_verified(plan.store, plan.run_id)[0]
        assert (
            at - (last.step if last else 0) <= SAVE_EVERY
        )  # `at` itself is one of the steps done again
    assert attempt(plan, 2).fine
    assert losses_of(plan) == pytest.approx(unbroken, rel=1e-6)
    check_samples(plan)


@pytest.mark.parametrize(
    "share",
    [0.9, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.001, 0.1, 0.3, 0.6))],
    ids=lambda s: f"at{s}",
)
def test_death_in_a_checkpoint_write(
    share: float, pocket_base: str, tmp_path: Path, unbroken: list[float]
) -> None:
    """The kernel ends rank 0 when a file of the checkpoint passes a share of the largest one's size."""
    whole = fresh_plan(pocket_base, tmp_path / "whole", train={"max_steps": SAVE_EVERY})
    assert attempt(whole, 2).fine
    state = Path(list_checkpoints(whole.store, whole.run_id)[0].ref.uri) / "state.safetensors"
    plan = fresh_plan(pocket_base, tmp_path / "broken")
    broken = attempt(plan, 2, Faults(die_at_byte=int(share * state.stat().st_size)))
    assert list_checkpoints(plan.store, plan.run_id) == []
    assert resume_after(plan, broken) == 0
    assert losses_of(plan) == pytest.approx(unbroken, rel=1e-6)
    assert not [p for p in plan.folder.iterdir() if p.name.startswith(".tmp")]


def test_half_of_a_checkpoint_that_is_never_written_again_is_cleared(
    pocket_base: str, tmp_path: Path
) -> None:
    """Rank 0 dies in the extra checkpoint that a notice asked for at step 2; the resumed run saves at 3, 6, ... only."""
    plan = fresh_plan(pocket_base, tmp_path)
    assert not attempt(plan, 2, Faults(preempt_at_step=2, die_at_byte=50_000)).fine
    assert [p for p in plan.folder.iterdir() if p.name.startswith(".tmp")]
    assert attempt(plan, 2).fine
    assert not [p for p in plan.folder.iterdir() if p.name.startswith(".")]


def test_world_size_two_one_two(pocket_base: str, tmp_path: Path, unbroken: list[float]) -> None:
    plan = fresh_plan(pocket_base, tmp_path)
    assert not attempt(plan, 2, Faults(kill_at_step=4)).fine
    assert not attempt(plan, 1, Faults(kill_at_step=7)).fine
    assert attempt(plan, 2).fine
    assert losses_of(plan) == pytest.approx(unbroken, rel=1e-5)
    check_samples(plan)


def test_damaged_files_fall_back(pocket_base: str, tmp_path: Path, unbroken: list[float]) -> None:
    """Each file of the newest checkpoint truncated, emptied and bit-flipped in turn: found, named, the one before used.

    A run that starts with it says so in its failures.jsonl, which is what a person reads.
    """
    plan = fresh_plan(pocket_base, tmp_path, train={"keep": 5})
    assert not attempt(plan, 2, Faults(kill_at_step=8)).fine
    older, newest = list_checkpoints(plan.store, plan.run_id)
    assert (older.step, newest.step) == (3, 6)
    manifest = Path(newest.ref.uri) / MANIFEST
    for file in [
        *(p for p in Path(newest.ref.uri).rglob("*") if p.is_file() and p != manifest),
        manifest,
    ]:
        good = file.read_bytes()
        middle = good.index(b'"updates": 6') + 11 if file == manifest else len(good) // 2
        for bad in (
            good[:middle],
            b"",
            good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        ):
            file.write_bytes(bad)
            found, damaged = latest_verified(plan.store, plan.run_id)
            assert found == older
            assert len(damaged) == 1 and file.name in damaged[0]
        if file != manifest:
            file.write_bytes(good)
    assert attempt(plan, 2).fine
    assert losses_of(plan) == pytest.approx(unbroken, rel=1e-6)
    assert [c.step for c in list_checkpoints(plan.store, plan.run_id)] == [3, 6, 9, 10]
    assert len(read_failures(plan.folder)) == 1 and str(manifest) in read_failures(plan.folder)[0]


def test_hung_worker_is_ended(pocket_base: str, tmp_path: Path, unbroken: list[float]) -> None:
    plan = fresh_plan(pocket_base, tmp_path, train={"hang_timeout_s": 15.0})
    assert not attempt(plan, 2, Faults(rank=1, hang_at_step=5)).fine
    assert attempt(plan, 2).fine
    assert losses_of(plan) == pytest.approx(unbroken, rel=1e-6)


def test_notice_of_preemption_saves_at_once(
    pocket_base: str, tmp_path: Path, unbroken: list[float]
) -> None:
    """The node is said to go after step 5, nobody says when, and it goes in step 6."""
    plan = fresh_plan(pocket_base, tmp_path)
    broken = attempt(plan, 2, Faults(rank=1, preempt_at_step=5, kill_at_step=6))
    assert resume_after(plan, broken) == 5
    assert losses_of(plan) == pytest.approx(unbroken, rel=1e-6)


def test_notice_with_a_deadline_loses_no_step(
    pocket_base: str, tmp_path: Path, unbroken: list[float]
) -> None:
    """The node is said to go soon after step 4: all ranks save and stop by themselves, and nothing is done again."""
    plan = fresh_plan(pocket_base, tmp_path)
    broken = attempt(plan, 2, Faults(preempt_at_step=4, preempt_in_s=3))
    assert broken.stopped
    assert [line["step"] for line in read_metrics(plan.folder)] == [1, 2, 3, 4]
    assert resume_after(plan, broken) == 4
    assert losses_of(plan) == pytest.approx(unbroken, rel=1e-6)


@pytest.mark.parametrize(
    ("zero", "policy"),
    [
        (0, "skip"),
        (2, "stop"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((0, "stop"), (2, "skip"), (3, "skip"), (3, "stop"))
        ),
    ],
)
def test_gradient_that_is_not_finite(
    zero: int, policy: str, pocket_base: str, tmp_path: Path
) -> None:
    """NaN in one rank's gradient at step 5: `stop` ends the run before it can harm, `skip` leaves that step out."""
    plan = fresh_plan(pocket_base, tmp_path, train={"nonfinite": policy, "zero": zero})
    outcome = attempt(plan, 2, Faults(rank=1, poison_at_step=5))
    if policy == "stop":
        assert (
            outcome.mistakes
            and "step 5" in outcome.mistakes[0]
            and "train.nonfinite=skip" in outcome.mistakes[0]
        )
        assert [c.step for c in list_checkpoints(plan.store, plan.run_id)] == [3]
        return
    assert outcome.fine
    lines = read_metrics(plan.folder)
    assert [line["step"] for line in lines if line["skipped"]] == [5]
    assert lines[4]["grad_norm"] is None and lines[-1]["loss"] < 0.1 * lines[0]["loss"]


def test_full_disk_is_foreseen(
    pocket_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = fresh_plan(pocket_base, tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(UserError, match=r"1 MiB free, and the next checkpoint wants 30 MiB"):
        check_space(plan.store, 1_000_000)


def test_a_run_does_not_start_without_room_for_a_checkpoint(
    pocket_base: str, tmp_path: Path
) -> None:
    plan = fresh_plan(pocket_base, tmp_path)
    outcome = attempt(plan, 2, Faults(free_bytes=1 << 20))
    assert (
        outcome.codes == [0, 0] and len(outcome.mistakes) == 2 and len(set(outcome.mistakes)) == 1
    )
    assert "1 MiB free, and the next checkpoint wants" in outcome.mistakes[0]
    assert read_metrics(plan.folder) == []


@pytest.mark.parametrize("rank", [0, 1], ids=["metrics", "samples"])
def test_what_one_ranks_disk_refuses_ends_all_alike(
    rank: int, pocket_base: str, tmp_path: Path, unbroken: list[float]
) -> None:
    """No file of one rank may grow any more after step 4: one line for all ranks, and the same command goes on."""
    plan = fresh_plan(pocket_base, tmp_path, train={"save_every": 10})
    outcome = attempt(plan, 2, Faults(rank=rank, refuse_writes_at_step=4))
    assert outcome.codes == [0, 0] and len(outcome.mistakes) == 2
    assert outcome.mistakes[0] == outcome.mistakes[1]
    assert (
        str(plan.folder) in outcome.mistakes[0]
        and "larger than a file may be here" in outcome.mistakes[0]
    )
    assert len(read_metrics(plan.folder)) in (3, 4)
    assert attempt(plan, 2).fine
    assert losses_of(plan) == pytest.approx(unbroken, rel=1e-6)
    check_samples(plan)


def test_a_rank_that_does_not_see_the_checkpoint(
    pocket_base: str, tmp_path: Path, unbroken: list[float]
) -> None:
    """A store that is another folder on the second node: said at the start, instead of ranks at different steps."""
    plan = fresh_plan(pocket_base, tmp_path)
    assert not attempt(plan, 2, Faults(kill_at_step=5)).fine
    outcome = attempt(plan, 2, Faults(rank=1, other_store=tmp_path / "other"))
    assert outcome.codes == [0, 0] and len(set(outcome.mistakes)) == 1
    assert (
        "rank 0 goes on from step 3" in outcome.mistakes[0]
        and "all nodes share" in outcome.mistakes[0]
    )
    assert attempt(plan, 2).fine
    assert losses_of(plan) == pytest.approx(unbroken, rel=1e-6)


def test_a_disk_that_is_full_when_the_run_ends(
    pocket_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps are done and the artifact cannot be written: one line, and with room again the same call ends the run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        plan = fresh_plan(pocket_base, disk / "store")
        assert attempt(plan, 1).fine
        monkeypatch.setattr(stage, "run_id_of", lambda *_: plan.run_id)
        monkeypatch.setattr(stage, "fit", lambda _: None)
        free = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(b"x" * free)
        with pytest.raises(
            UserError, match=r"store/.*: the disk is full \(0 MiB free, \d+ MiB wanted\)"
        ):
            stage.train(plan.recipe, plan.store, plan.prepared, PickledFeed, SILENT)
        (disk / "ballast").unlink()
        run = stage.train(plan.recipe, plan.store, plan.prepared, PickledFeed, SILENT)
        assert run.num_steps == NUM_STEPS
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_shares_that_are_not_equal(pocket_base: str, tmp_path: Path) -> None:
    """11 rows in steps of 3 and a last one of 2: of 2 ranks one has less to do than the other, of 4 one or two have none.

    All do the same steps, no row is left out or seen twice, and the curves are the ones of one rank.
    """
    curves = []
    for world_size in (1, 2, 4):
        store = Store(tmp_path / str(world_size))
        recipe = recipe_for(pocket_base, train={"global_batch": 3})
        plan = plan_of(recipe, store, prepared_dataset(store, pocket_base, num_train=11))
        assert attempt(plan, world_size, timeout_s=120).fine
        seen = Counter(name for names in read_samples(plan.folder).values() for name in names)
        assert set(seen.values()) == {2} and len(seen) == plan.prepared.train.num_samples
        curves.append(losses_of(plan))
    assert len(curves[0]) == 8
    assert curves[1] == pytest.approx(curves[0], rel=1e-5) and curves[2] == pytest.approx(
        curves[0], rel=1e-5
    )


def test_without_held_out_rows_manifests_are_strict_json_without_their_loss(
    pocket_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    plan = plan_of(
        recipe_for(pocket_base), store, prepared_dataset(store, pocket_base, num_heldout=0)
    )
    assert attempt(plan, 2).fine
    monkeypatch.setattr(stage, "run_id_of", lambda *_: plan.run_id)
    monkeypatch.setattr(stage, "fit", lambda _: None)
    run = stage.train(plan.recipe, store, plan.prepared, PickledFeed, SILENT)
    assert run.best.step == NUM_STEPS and run.metrics.keys() == {"train_loss", "seconds", "tokens"}
    assert [list(c.metrics) for c in list_checkpoints(store, plan.run_id)] == [["loss"]] * 2
    assert not any("heldout_loss" in line for line in read_metrics(plan.folder))
    manifests = [path.read_text() for path in tmp_path.rglob(MANIFEST)]
    assert len(manifests) == 4
    for text in manifests:
        json.loads(text, parse_constant=lambda word: pytest.fail(f"a manifest holds {word}"))


def test_early_stop_and_a_finished_run_stays_finished(pocket_base: str, tmp_path: Path) -> None:
    plan = fresh_plan(pocket_base, tmp_path, train={"lr": 1e-12, "save_every": 2, "patience": 2})
    assert attempt(plan, 2).fine
    assert len(read_metrics(plan.folder)) < NUM_STEPS
    before = read_metrics(plan.folder)
    assert attempt(plan, 1).fine
    assert read_metrics(plan.folder) == before
