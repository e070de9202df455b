"""Which checkpoint a run goes on from, whatever happened to the folders, and what it clears out of its way."""

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
    finite,
    latest_verified,
    list_checkpoints,
    with_checksum,
)
from pipelines.train.checkpoint.retention import discard_after, prune
from tests.stages import train

RUN = "c" * 64


def make(store: Store, step: int, **facts: Any) -> Path:
    """A checkpoint of two files with the facts that a resumed run reads."""
    with store.create_artifact(
        checkpoint_kind(RUN), checkpoint_key(RUN, step), {"base": "b" * 64}
    ) as draft:
        (draft.path / "adapter").mkdir()
        (draft.path / "adapter" / "weights").write_text(f"weights {step}")
        (draft.path / "state").write_text(f"state {step}")
        told = {
            "run_id": RUN,
            "step": step,
            "updates": step,
            "metrics": {"heldout_loss": 1 / step},
            "history": [],
        }
        draft.metadata = with_checksum({**told, **facts})
    assert draft.ref is not None
    return Path(draft.ref.uri)


def test_no_flipped_bit_of_a_manifest_goes_unseen(store: Store) -> None:
    """Each byte of the newest manifest in turn with one bit flipped: left out by name, or nothing that counts changed."""
    make(store, 3)
    manifest = make(store, 6) / MANIFEST
    good, dice, unseen = manifest.read_bytes(), random.Random(1), 0
    newest = latest_verified(store, RUN)[0]
    assert newest is not None and newest.step == 6
    facts = dict(json.loads(good)["metadata"])
    for at in range(len(good)):
        manifest.write_bytes(
            good[:at] + bytes([good[at] ^ 1 << dice.randrange(8)]) + good[at + 1 :]
        )
        found, damaged = latest_verified(store, RUN)
        assert found is not None
        if found.step == 3:
            assert len(damaged) == 1 and str(manifest.parent) in damaged[0], damaged
            continue
        unseen += 1
        artifact = store.read(str(manifest.parent))
        assert artifact is not None and found == newest and artifact.metadata == facts
    assert unseen < len(good) / 4  # blanks, and the number of the manifest's form


@pytest.mark.parametrize("harm", ["truncated", "emptied", "gone", "a file gone"])
def test_a_checkpoint_without_its_manifest_or_a_file_is_named(harm: str, store: Store) -> None:
    make(store, 3)
    folder = make(store, 6)
    manifest = folder / MANIFEST
    if harm == "truncated":
        manifest.write_text(manifest.read_text()[:50])
    elif harm == "emptied":
        manifest.write_text("")
    else:
        (manifest if harm == "gone" else folder / "state").unlink()
    found, damaged = latest_verified(store, RUN)
    assert found is not None and found.step == 3
    assert (
        len(damaged) == 1
        and str(folder / ("state" if harm == "a file gone" else MANIFEST)) in damaged[0]
    )
    discard_after(store, RUN, 3)
    assert latest_verified(store, RUN) == (found, [])


def test_a_run_clears_what_is_damaged_or_half_written_and_nothing_else(store: Store) -> None:
    kept, newer, broken = make(store, 3), make(store, 6), make(store, 9)
    (broken / MANIFEST).write_text("{")
    root = kept.parent
    for name in (f".tmp-{kept.name}-0123abcd", ".gone-x-0123abcd", "tensorboard", "samples"):
        (root / name).mkdir()
        (root / name / "file").write_text("x")
    (root / "metrics.jsonl").write_text("")
    discard_after(store, RUN, 3)
    assert sorted(p.name for p in root.iterdir()) == sorted(
        [kept.name, "metrics.jsonl", "samples", "tensorboard"]
    )
    assert not newer.exists()


def test_what_another_process_still_writes_is_left_alone(store: Store) -> None:
    with store.create_artifact(checkpoint_kind(RUN), checkpoint_key(RUN, 6)) as draft:
        (draft.path / "state").write_text("half")
        discard_after(store, RUN, 3)
        assert draft.path.exists()
        draft.metadata = with_checksum({"run_id": RUN, "step": 6, "metrics": {}})
    assert [c.step for c in list_checkpoints(store, RUN)] == [6]


def test_without_held_out_rows_the_latest_are_kept_and_the_last_is_best(store: Store) -> None:
    for step in (3, 6, 9):
        make(store, step, metrics={"loss": 1.0})
        kept = prune(store, RUN, keep=2)
    assert [c.step for c in kept] == [9, 6]


def test_a_number_that_is_not_finite_is_left_out_of_a_manifest() -> None:
    assert finite({"loss": float("nan"), "heldout_loss": 0.5}) == {"heldout_loss": 0.5}
    assert finite({"loss": 0.25, "heldout_loss": float("inf")}) == {"loss": 0.25}


def test_a_command_says_which_file_is_damaged_before_it_starts_workers(
    store: Store, pocket_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, 3)
    broken = make(store, 6)
    (broken / "state").write_text("states6")
    notes: list[str] = []

    class Said(type(SILENT)):
        def note(self, text: str) -> None:
            notes.append(text)

    def no_workers(plan: Any) -> None:
        assert not broken.exists()
        raise UserError("no workers here")

    monkeypatch.setattr(stage, "_key", lambda *_: RUN)
    rows = SplitStats(1, 1, 1, 1)
    prepared = PreparedDataset(
        ArtifactRef("prepared", "k", "d", "nowhere"), 64, rows, rows, {}, "", ""
    )
    recipe = parse_recipe(
        {"name": "x", "model": {"base": pocket_base}, "data": {"sources": ["a.json"]}}
    )
    with pytest.raises(UserError, match="no workers here"):
        train(recipe, store, prepared, None, Said(), no_workers)
    assert any(
        "checkpoint damaged, step 6 is left out" in note and str(broken / "state") in note
        for note in notes
    )
    assert any("goes on from step 3 of 1" in note for note in notes)
