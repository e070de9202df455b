"""Runs with unusual data, gradients or ends."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from pipelines.core.progress import SILENT
from pipelines.storage import MANIFEST, Store
from pipelines.train import stage
from pipelines.train.checkpoint.files import list_checkpoints
from pipelines.train.track.metrics_log import read_metrics, read_samples
from tests.chaos.checks import NUM_STEPS, losses_of
from tests.chaos.faults import Faults
from tests.chaos.harness import attempt
from tests.small_run import PickledFeed, fresh_args, prepared_dataset, recipe_for, worker_args
from tests.stages import train

_SLOW_CASES = ((0, "stop"), (2, "skip"), (3, "skip"), (3, "stop"))


@pytest.mark.parametrize(
    ("zero", "policy"),
    [
        (0, "skip"),
        (2, "stop"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in _SLOW_CASES),
    ],
)
def test_a_gradient_that_is_not_finite_is_skipped_or_ends_the_run(
    zero: int, policy: str, pocket_base: str, tmp_path: Path
) -> None:
    """One rank's gradient has a NaN at step 5. In both cases no weight becomes NaN."""
    args = fresh_args(pocket_base, tmp_path, train={"nonfinite": policy, "zero": zero})
    outcome = attempt(args, 2, Faults(rank=1, poison_at_step=5))
    if policy == "stop":
        assert outcome.errors and "step 5" in outcome.errors[0]
        assert "train.nonfinite=skip" in outcome.errors[0]
        assert [c.step for c in list_checkpoints(args.store, args.run_id)] == [3]
        return
    assert outcome.finished
    lines = read_metrics(args.folder)
    assert [line["step"] for line in lines if line["skipped"]] == [5]
    assert lines[4]["grad_norm"] is None and lines[-1]["loss"] < 0.1 * lines[0]["loss"]


def test_ranks_with_unequal_numbers_of_rows_train_the_same_curve(
    pocket_base: str, tmp_path: Path
) -> None:
    """11 rows in steps of 3, and 2 in the last: of 2 ranks one has fewer rows, of 4 some have none.

    No row is lost or used twice, and the curves are those of one rank.
    """
    curves = []
    for world_size in (1, 2, 4):
        store = Store(tmp_path / str(world_size))
        recipe = recipe_for(pocket_base, train={"global_batch": 3})
        args = worker_args(recipe, store, prepared_dataset(store, pocket_base, num_train=11))
        assert attempt(args, world_size, timeout_s=120).finished
        counts = Counter(name for names in read_samples(args.folder).values() for name in names)
        assert set(counts.values()) == {2} and len(counts) == args.prepared.train.num_samples
        curves.append(losses_of(args))
    assert len(curves[0]) == 8
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[2] == pytest.approx(curves[0], rel=1e-5)


def test_without_held_out_rows_manifests_are_strict_json_without_a_held_out_loss(
    pocket_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    prepared = prepared_dataset(store, pocket_base, num_heldout=0)
    args = worker_args(recipe_for(pocket_base), store, prepared)
    assert attempt(args, 2).finished
    monkeypatch.setattr(stage, "_key", lambda *_: args.run_id)
    run = train(args.recipe, store, prepared, PickledFeed, SILENT, lambda _: None)
    assert run.best.step == NUM_STEPS and run.metrics.keys() == {"train_loss", "seconds", "tokens"}
    assert [list(c.metrics) for c in list_checkpoints(store, args.run_id)] == [["loss"]] * 2
    assert not any("heldout_loss" in line for line in read_metrics(args.folder))
    manifests = [path.read_text() for path in tmp_path.rglob(MANIFEST)]
    assert len(manifests) == 4
    for text in manifests:
        json.loads(text, parse_constant=lambda word: pytest.fail(f"a manifest contains {word}"))


def test_a_run_that_stopped_early_stays_finished(pocket_base: str, tmp_path: Path) -> None:
    train_section = {"lr": 1e-12, "save_every": 2, "patience": 2}
    args = fresh_args(pocket_base, tmp_path, train=train_section)
    assert attempt(args, 2).finished
    lines = read_metrics(args.folder)
    assert len(lines) < NUM_STEPS
    assert attempt(args, 1).finished
    assert read_metrics(args.folder) == lines
