"""Finding, reading and checking the artifacts of a local store."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.core.errors import UserError
from pipelines.storage import Store, verify
from tests.small_artifacts import KEY, hidden_names, write_artifact


def test_a_written_artifact_is_found_by_key_and_by_id_with_its_metadata_and_files(
    store: Store,
) -> None:
    ref = write_artifact(store)
    artifact = store.find("things", KEY)
    assert artifact is not None and artifact.ref == ref and artifact.metadata == {"text": "hello"}
    assert sorted(artifact.files) == ["deep/er/0.txt", "deep/er/1.txt", "deep/er/2.txt", "top.bin"]
    assert artifact.files["top.bin"]["bytes"] == 256
    assert store.list("things") == [artifact] == [store.by_id("things", KEY[:12])]
    assert store.local_dir(ref) == Path(store.uri, "things", KEY[:12])
    assert verify(store.local_dir(ref))["parents"] == {"made-from": "p" * 64} == ref.parents
    assert store.find("things", "x" * 64) is None and store.list("nothing") == []
    assert hidden_names(store) == []


def test_the_id_of_an_artifact_is_the_name_of_its_folder(store: Store) -> None:
    ref = write_artifact(store)
    assert store.names("things") == [ref.name] == [Path(ref.uri).name]


def test_the_digest_depends_on_content_and_parents_and_not_on_time_or_metadata(
    store: Store, tmp_path: Path
) -> None:
    ref = write_artifact(store)
    other = Store(tmp_path / "other")
    assert write_artifact(other).digest == ref.digest
    assert write_artifact(other, "b" * 64, text="other").digest != ref.digest
    assert write_artifact(other, "c" * 64, num_files=4).digest != ref.digest


def test_an_id_that_is_missing_or_too_short_is_refused_with_the_ids_that_exist(
    store: Store,
) -> None:
    ref = write_artifact(store)
    for prefix, problem in (
        ("0" * 64, "no finished artifact of kind 'things' has the id 0"),
        (ref.digest, "no finished artifact of kind 'things'"),
        (KEY[:3], "too short for an id"),
        ("", "too short for an id"),
    ):
        with pytest.raises(UserError, match=rf"{problem}.*there are {ref.name}"):
            store.by_id("things", prefix)
    with pytest.raises(UserError, match="there are none"):
        store.by_id("nothing", KEY)


def test_a_prefix_of_several_ids_is_refused_with_those_ids(store: Store) -> None:
    keys = ["abcd" + letter * 60 for letter in "12"]
    refs = [write_artifact(store, key) for key in (*keys, "f" * 64)]
    with pytest.raises(UserError, match=r"several ids .* abcd: abcd1{8}, abcd2{8}; give more"):
        store.by_id("things", "abcd")
    for prefix in ("abcd1", refs[0].name, keys[0]):
        assert store.by_id("things", prefix).ref == refs[0]
    assert store.by_id("things", "ffff").ref == refs[2]


_START = (
    '{"schema": 2, "kind": "things", "key": "KEY", "digest": "d", "parents": {}, "metadata": {}'
)
DAMAGED = {
    "empty": b"",
    "cut off": b'{"schema": 2, "kind": "things"',
    "a list": b"[]",
    "text": b'"x"',
    "null": b"null",
    "not UTF-8": b"\xff\xfe{}",
    "no files": _START.encode() + b"}",
    "files that are no mapping": _START.encode() + b', "files": 3}',
    "a file outside": _START.encode() + b', "files": {"../../../x": {}}}',
    "an absolute file": _START.encode() + b', "files": {"/etc/passwd": {}}}',
}


@pytest.mark.parametrize("case", DAMAGED)
def test_an_artifact_with_a_damaged_manifest_is_unfinished_and_is_built_again(
    store: Store, tmp_path: Path, case: str
) -> None:
    ref = write_artifact(store)
    manifest = DAMAGED[case].replace(b"KEY", KEY.encode())
    (store.local_dir(ref) / "manifest.json").write_bytes(manifest)
    (tmp_path / "x").write_text("a file that no manifest may reach")
    assert store.find("things", KEY) is None and store.list("things") == []
    with pytest.raises(UserError):
        verify(store.local_dir(ref))
    assert write_artifact(store) == ref
    assert verify(store.local_dir(ref))["digest"] == ref.digest


def test_an_artifact_without_one_of_its_files_or_with_another_key_is_not_found(
    store: Store,
) -> None:
    ref = write_artifact(store)
    (store.local_dir(ref) / "top.bin").unlink()
    assert store.find("things", KEY) is None and store.read(ref.uri) is None
    write_artifact(store)
    assert store.find("things", KEY) is not None
    assert store.find("things", KEY[:12] + "other" * 10) is None


def test_verify_names_the_file_that_is_altered_resized_or_missing(store: Store) -> None:
    ref = write_artifact(store)
    folder = store.local_dir(ref)
    path = folder / "top.bin"
    original = path.read_bytes()
    for content, problem in (
        (b"\1" + original[1:], "damaged"),
        (original + b"x", "damaged"),
        (b"", "damaged"),
        (None, "missing"),
    ):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{path}: .*{problem}"):
            verify(folder)
    path.write_bytes(original)
    assert verify(folder)["digest"] == ref.digest
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest.json: missing or unreadable"):
        verify(folder)


def test_files_get_the_users_own_permissions(store: Store) -> None:
    ref = write_artifact(store)
    folder = Path(store.uri, "folder")
    folder.mkdir()
    assert store.local_dir(ref).stat().st_mode == folder.stat().st_mode
    (folder / "file").touch()
    store.create_file(f"{store.uri}/small", "x")
    assert Path(store.uri, "small").stat().st_mode == (folder / "file").stat().st_mode


def test_a_store_can_be_given_as_a_path_or_as_a_file_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uris = [Store(place).uri for place in ("s", f"file://{tmp_path}/s", tmp_path / "s")]
    assert uris == [f"{tmp_path}/s"] * 3
