"""Manifests of schema 1: what stays readable, what is rebuilt, and the line that announces it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from pipelines.core.artifacts import ArtifactRef, Checkpoint, TrainingRun
from pipelines.core.errors import UserError
from pipelines.storage import Store, schema_note, verify
from pipelines.storage.manifest_schema import SCHEMA
from tests.small_artifacts import KEY, write_artifact

SCHEMA_1 = Path(__file__).resolve().parents[2] / "fixtures" / "store_schema1"
TRAINED, PREPARED = "1c3892e2d018", "5fd0ce9580c7"


@pytest.fixture
def old_store(tmp_path: Path) -> Store:
    """A copy of a store that the version before schema 2 wrote."""
    shutil.copytree(SCHEMA_1, tmp_path / "old")
    return Store(tmp_path / "old")


def key_of(store: Store, kind: str, name: str) -> str:
    return json.loads(Path(store.uri, kind, name, "manifest.json").read_text())["key"]


def test_a_manifest_names_its_schema_and_has_the_nouns_fields_under_metadata(store: Store) -> None:
    manifest = verify(store.local_dir(write_artifact(store)))
    assert manifest["schema"] == SCHEMA == 2
    assert manifest["metadata"] == {"text": "hello"} and "facts" not in manifest


def test_of_an_older_schema_only_model_versions_are_found(old_store: Store) -> None:
    assert len(old_store.list("models")) == 2
    for kind, name in (("prepared", PREPARED), ("trained", TRAINED)):
        key = key_of(old_store, kind, name)
        assert verify(Path(old_store.folder(kind, key)))["schema"] == 1, "the fixture is damaged"
        assert old_store.find(kind, key) is None and old_store.list(kind) == []
        with pytest.raises(UserError, match="there are none"):
            old_store.by_id(kind, name)


def test_an_artifact_of_an_older_schema_is_replaced_when_its_key_is_built_again(
    old_store: Store,
) -> None:
    key = key_of(old_store, "prepared", PREPARED)
    with old_store.create_artifact("prepared", key) as draft:
        (draft.path / "new").write_text("new")
    artifact = old_store.find("prepared", key)
    assert artifact is not None and list(artifact.files) == ["new"]
    assert Path(artifact.ref.uri).name == PREPARED


def test_the_first_command_on_an_older_store_announces_in_one_line_what_is_rebuilt(
    old_store: Store,
) -> None:
    note = schema_note(old_store)
    assert note is not None and "\n" not in note
    assert note.startswith(f"{old_store.uri}: written by an older version; models and aliases stay")
    assert "(1 evals, 1 prepared, 1 runs, 1 trained)" in note
    assert schema_note(old_store) is None


def test_a_new_store_gets_no_line_and_an_empty_one_no_file(store: Store) -> None:
    assert schema_note(store) is None and not Path(store.uri).exists()
    write_artifact(store)
    assert schema_note(store) is None is schema_note(store)
    assert store.names("") == ["things"]


def test_a_store_that_cannot_be_written_repeats_the_line(
    old_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise UserError("read-only")

    monkeypatch.setattr(Store, "create_file", refuse)
    assert schema_note(old_store) == schema_note(old_store) is not None


def test_an_object_store_gets_the_same_line(tmp_path: Path, old_store: Store) -> None:
    remote = Store(f"memory://schema/{time.monotonic_ns()}", cache_dir=tmp_path / "cache")
    for path in Path(old_store.uri).rglob("*"):
        if path.is_file():
            uri = f"{remote.uri}/{path.relative_to(old_store.uri)}"
            remote._remote.put(path, uri)
    note = schema_note(remote)
    assert note is not None and "(1 evals, 1 prepared, 1 runs, 1 trained)" in note
    assert schema_note(remote) is None


@pytest.mark.parametrize("uri", ["/somewhere/store", "memory://bucket/store"])
def test_references_inside_a_store_are_relative_and_others_stay(uri: str) -> None:
    store = Store(uri)
    assert store.relative(f"{uri}/runs/a/b") == "runs/a/b"
    assert store.resolve("runs/a/b") == f"{uri}/runs/a/b"
    for elsewhere in ("/somewhere/storehouse/a", "s3://other/a"):
        assert store.relative(elsewhere) == elsewhere == store.resolve(elsewhere)


def test_a_noun_stored_in_one_place_points_into_the_place_where_it_is_read(tmp_path: Path) -> None:
    written, moved = Store(tmp_path / "a"), Store(tmp_path / "b")
    refs = [ArtifactRef("runs/x", KEY, "d", f"{s.uri}/runs/x/{KEY[:12]}") for s in (written, moved)]
    runs = [TrainingRun(ref, "x", 2, (Checkpoint(ref, "x", 2, {}),), {}) for ref in refs]
    data = written.noun_to_json(runs[0])
    assert str(tmp_path) not in json.dumps(data)
    assert written.noun_from_json(TrainingRun, data) == runs[0]
    assert moved.noun_from_json(TrainingRun, data) == runs[1]
