"""Stores from elsewhere: written under schema 1, or copied to another place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.core.artifacts import Alias, AliasMove, Checkpoint
from pipelines.registry.registry import Registry
from pipelines.storage import Store, verify
from pipelines.train.stage import load_run
from tests.small_adapters import register, write_adapter

SCHEMA_1 = Path(__file__).resolve().parents[2] / "fixtures" / "store_schema1"
FIRST, SECOND = "toy@9f8f3d8ab9f8", "toy@17a3eab7c430"


@pytest.fixture
def old_store(tmp_path: Path) -> Store:
    """A copy of a store that the version before schema 2 wrote."""
    shutil.copytree(SCHEMA_1, tmp_path / "old")
    return Store(tmp_path / "old")


def test_versions_of_schema_1_are_listed_checked_and_have_defaults_for_new_fields(
    old_store: Store, fingerprint: str
) -> None:
    registry = Registry(old_store)
    assert registry.models() == ["toy"]
    versions = registry.versions("toy")
    assert [version.id for version in versions] == [FIRST, SECOND]
    for version in versions:
        assert version.base_fingerprint == fingerprint, "the endpoint would not offer it"
        assert version.metrics["heldout_loss"] < version.metrics["base_heldout_loss"]
        assert {"checkpoint", "evals", "prepared", "recipe", "git_commit"} <= version.lineage.keys()
        assert version.parents == {} == version.template_arguments
        assert version.quantization == version.dtype == version.engine == version.row_ids_uri == ""
        folder = registry.adapter_dir(version)
        assert folder.is_relative_to(old_store.uri) and str(folder) == version.adapter_uri
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 1


def test_alias_histories_of_schema_1_are_listed_and_moved_on(
    old_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFORGE_ACTOR", "someone")
    registry = Registry(old_store)
    moves = registry.history("toy", "production")
    assert [(m.alias.version_id, m.action) for m in moves] == [
        (FIRST, "promote"),
        (SECOND, "promote"),
        (FIRST, "rollback"),
    ]
    assert all(m.actor == m.decision == "" and not m.override for m in moves)
    assert moves[-1].alias == Alias("toy", "production", FIRST, 3, ((FIRST, 1.0),))
    assert registry.aliases("toy") == [moves[-1].alias, Alias("toy", "staging", SECOND, 1)]
    assert registry.get("toy").id == FIRST and registry.get("toy:staging").id == SECOND
    registry.promote("toy", "production", SECOND, 3, reason="again")
    assert registry.get("toy").id == SECOND
    assert registry.rollback("toy", "production").version_id == FIRST
    last = registry.history("toy", "production")[3:]
    assert [(m.alias.revision, m.action, m.actor) for m in last] == [
        (4, "promote", "someone"),
        (5, "rollback", "someone"),
    ]
    assert isinstance(last[0], AliasMove) and last[0].reason == "again"


def test_an_adapter_registered_under_schema_1_is_the_same_version_when_registered_again(
    old_store: Store,
) -> None:
    registry = Registry(old_store)
    version = registry.get(FIRST)
    fields = {"base": version.base, "base_fingerprint": version.base_fingerprint}
    again = register(registry, registry.adapter_dir(version), "toy", dtype="bf16", **fields)
    assert again == version and len(registry.versions("toy")) == 2


def test_a_store_that_was_moved_keeps_versions_adapters_and_aliases(tmp_path: Path) -> None:
    store = Store(tmp_path / "first" / "store")
    registry = Registry(store)
    rows = f"{store.uri}/models/rows.txt"
    version = register(registry, write_adapter(tmp_path / "a"), row_ids_uri=rows)
    registry.promote("bot", "production", version.id, 0)
    (tmp_path / "second").mkdir()
    Path(store.uri).rename(tmp_path / "second" / "store")
    moved = Registry(Store(tmp_path / "second" / "store"))
    reread = moved.get("bot")
    assert reread.id == version.id and moved.history("bot", "production")[0].alias.revision == 1
    assert reread.row_ids_uri == f"{tmp_path}/second/store/models/rows.txt"
    folder = moved.adapter_dir(reread)
    assert folder == Path(reread.adapter_uri) and folder.is_relative_to(tmp_path / "second")
    assert (folder / "adapter_model.safetensors").is_file()


def test_the_checkpoints_of_a_run_are_found_in_a_store_that_was_moved(tmp_path: Path) -> None:
    store = Store(tmp_path / "first")
    checkpoints = []
    for step in (1, 2):
        with store.create_artifact("runs/abc", f"{step}" * 64) as draft:
            (draft.path / "adapter").write_text(f"weights of step {step}")
        assert draft.ref is not None
        checkpoints.append(Checkpoint(draft.ref, "abc", step, {}))
    with store.create_artifact("trained", "a" * 64) as draft:
        draft.metadata = {
            "run_id": "abc",
            "num_steps": 2,
            "metrics": {},
            "checkpoints": [store.noun_to_json(checkpoint) for checkpoint in checkpoints],
        }
    Path(store.uri).rename(tmp_path / "second")
    moved = Store(tmp_path / "second")
    run = load_run(moved, moved.by_id("trained", "aaaa"))
    assert [checkpoint.step for checkpoint in run.checkpoints] == [1, 2]
    for checkpoint in run.checkpoints:
        folder = moved.local_dir(checkpoint.ref)
        assert verify(folder)["digest"] == checkpoint.ref.digest
        assert (folder / "adapter").read_text() == f"weights of step {checkpoint.step}"
        assert moved.read(checkpoint.ref.uri) is not None
