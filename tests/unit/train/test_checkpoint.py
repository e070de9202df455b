"""Which checkpoint a run resumes from, whatever happened to the files, and which it deletes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.recipe import parse_recipe
from pipelines.core.artifacts import ArtifactRef, PreparedDataset, SplitStats
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.storage import MANIFEST, Store
from pipelines.train import stage
from pipelines.train.checkpoint.files import (
    checkpoint_key,
    checkpoint_kind,
    latest_verified,
    list_checkpoints,
    only_finite,
    with_checksum,
)
from pipelines.train.checkpoint.retention import discard_after, prune
from pipelines.train.worker import WorkerArgs
from tests.recorders import ProgressRecorder
from tests.stages import train

RUN = "c" * 64


def make(store: Store, step: int, **metadata: Any) -> Path:
    """A checkpoint of two files with the metadata that a resumed run reads."""
    with store.create_artifact(
        checkpoint_kind(RUN), checkpoint_key(RUN, step), {"base": "b" * 64, "prepared": "d"}
    ) as draft:
        (draft.path / "adapter").mkdir()
        (draft.path / "adapter" / "weights").write_text(f"weights {step}")
        (draft.path / "state").write_text(f"state {step}")
        values = {
            "run_id": RUN,
            "step": step,
            "updates": step,
            "metrics": {"heldout_loss": 1 / step},
            "history": [],
        }
        draft.metadata = with_checksum({**values, **metadata})
    assert draft.ref is not None
    return Path(draft.ref.uri)


def test_every_flipped_bit_of_a_manifest_that_matters_is_detected(store: Store) -> None:
    """Each byte of the newest manifest in turn with one bit flipped.

    Either the checkpoint is skipped and named, or nothing that is read has changed.
    """
    make(store, 3)
    manifest = make(store, 6) / MANIFEST
    intact, random_bits, num_harmless = manifest.read_bytes(), random.Random(1), 0
    newest = latest_verified(store, RUN)[0]
    assert newest is not None and newest.step == 6
    metadata = dict(json.loads(intact)["metadata"])
    for at in range(len(intact)):
        flipped = intact[at] ^ 1 << random_bits.randrange(8)
        manifest.write_bytes(intact[:at] + bytes([flipped]) + intact[at + 1 :])
        checkpoint, damaged = latest_verified(store, RUN)
        assert checkpoint is not None
        if checkpoint.step == 3:
            assert len(damaged) == 1 and str(manifest.parent) in damaged[0], damaged
            continue
        num_harmless += 1
        artifact = store.read(str(manifest.parent))
        assert artifact is not None and checkpoint == newest and artifact.metadata == metadata
    # Blanks, and the number of the manifest's schema.
    assert num_harmless < len(intact) / 4


@pytest.mark.parametrize("harm", ["truncated", "emptied", "gone", "a file gone"])
def test_a_checkpoint_with_a_damaged_or_missing_file_is_named(harm: str, store: Store) -> None:
    make(store, 3)
    folder = make(store, 6)
    manifest = folder / MANIFEST
    if harm == "truncated":
        manifest.write_text(manifest.read_text()[:50])
    elif harm == "emptied":
        manifest.write_text("")
    else:
        (manifest if harm == "gone" else folder / "state").unlink()
    checkpoint, damaged = latest_verified(store, RUN)
    assert checkpoint is not None and checkpoint.step == 3
    named = folder / ("state" if harm == "a file gone" else MANIFEST)
    assert len(damaged) == 1 and str(named) in damaged[0]
    discard_after(store, RUN, 3)
    assert latest_verified(store, RUN) == (checkpoint, [])


def test_a_run_deletes_damaged_and_unfinished_checkpoints_and_nothing_else(store: Store) -> None:
    valid, newer, broken = make(store, 3), make(store, 6), make(store, 9)
    (broken / MANIFEST).write_text("{")
    root = valid.parent
    for name in (f".tmp-{valid.name}-0123abcd", ".gone-x-0123abcd", "tensorboard", "samples"):
        (root / name).mkdir()
        (root / name / "file").write_text("x")
    (root / "metrics.jsonl").write_text("")
    discard_after(store, RUN, 3)
    assert sorted(p.name for p in root.iterdir()) == sorted(
        [valid.name, "metrics.jsonl", "samples", "tensorboard"]
    )
    assert not newer.exists()


def test_a_folder_that_another_process_still_writes_stays(store: Store) -> None:
    with store.create_artifact(checkpoint_kind(RUN), checkpoint_key(RUN, 6)) as draft:
        (draft.path / "state").write_text("half")
        discard_after(store, RUN, 3)
        assert draft.path.exists()
        draft.metadata = with_checksum({"run_id": RUN, "step": 6, "metrics": {}})
    assert [c.step for c in list_checkpoints(store, RUN)] == [6]


def test_without_held_out_rows_the_latest_checkpoints_remain_and_the_last_is_the_best(
    store: Store,
) -> None:
    for step in (3, 6, 9):
        make(store, step, metrics={"loss": 1.0})
        remaining = prune(store, RUN, keep=2)
    assert [c.step for c in remaining] == [9, 6]


def test_a_number_that_is_not_finite_is_omitted_from_a_manifest() -> None:
    assert only_finite({"loss": float("nan"), "heldout_loss": 0.5}) == {"heldout_loss": 0.5}
    assert only_finite({"loss": 0.25, "heldout_loss": float("inf")}) == {"loss": 0.25}


def test_checkpoints_of_another_build_of_the_dataset_are_discarded(
    store: Store, pocket_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset has the same key but other bytes: training must not resume from its past."""
    make(store, 3)
    steps: list[int] = []

    def no_workers(args: Any) -> None:
        steps.extend(checkpoint.step for checkpoint in list_checkpoints(store, RUN))
        raise UserError("no workers here")

    monkeypatch.setattr(stage, "_key", lambda *_: RUN)
    rows = SplitStats(1, 1, 1, 1)
    recipe = parse_recipe(
        {"name": "x", "model": {"base": pocket_base}, "data": {"sources": ["a.json"]}}
    )
    for digest, expected in (("d", [3]), ("other", [])):
        ref = ArtifactRef("prepared", "k", digest, "nowhere")
        prepared = PreparedDataset(ref, 64, rows, rows, {}, "", "")
        steps.clear()
        with pytest.raises(UserError, match="no workers here"):
            train(recipe, store, prepared, None, SILENT, no_workers)
        assert steps == expected


def test_a_command_names_a_damaged_file_before_it_starts_workers(
    store: Store, pocket_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, 3)
    broken = make(store, 6)
    (broken / "state").write_text("states6")
    recorder = ProgressRecorder()

    def no_workers(args: WorkerArgs) -> None:
        assert not broken.exists()
        raise UserError("no workers here")

    monkeypatch.setattr(stage, "_key", lambda *_: RUN)
    rows = SplitStats(1, 1, 1, 1)
    ref = ArtifactRef("prepared", "k", "d", "nowhere")
    prepared = PreparedDataset(ref, 64, rows, rows, {}, "", "")
    recipe = parse_recipe(
        {"name": "x", "model": {"base": pocket_base}, "data": {"sources": ["a.json"]}}
    )
    with pytest.raises(UserError, match="no workers here"):
        train(recipe, store, prepared, None, recorder, no_workers)
    damage = "checkpoint damaged, step 6 is skipped"
    assert any(damage in note and str(broken / "state") in note for note in recorder.notes)
    assert any("resumes from step 3 of 1" in note for note in recorder.notes)
