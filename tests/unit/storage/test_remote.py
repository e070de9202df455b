"""A store behind fsspec: manifest last, fetched copies checked, files created conditionally."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from pipelines.core.artifacts import ArtifactRef
from pipelines.core.errors import UserError
from pipelines.storage import Store

KEY = "k" * 64
_numbers = itertools.count()


class Scripted(MemoryFileSystem):
    """fsspec's memory under a protocol of its own, so that a test can change how it behaves."""

    protocol = "scripted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("scripted://", "memory://"))


fsspec.register_implementation("scripted", Scripted, clobber=True)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"scripted://bucket/{next(_numbers)}", cache_dir=tmp_path / "cache")
    yield store
    Scripted.store.clear()


def write(store: Store, text: str = "hello") -> ArtifactRef:
    with store.create_artifact("runs/abc", KEY, {"from": "p" * 64}) as draft:
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "file.txt").write_text(text)
        (draft.path / "zz.txt").write_text("last by name")
        draft.metadata["text"] = text
    assert draft.ref is not None
    return draft.ref


def path_in(store: Store, name: str) -> str:
    return Scripted._strip_protocol(f"{store.folder('runs/abc', KEY)}/{name}")


def test_fsspecs_own_memory_store_supports_every_operation(tmp_path: Path) -> None:
    store = Store("memory://bucket/all", cache_dir=tmp_path / "cache")
    store.check_writable()
    ref = write(store)
    assert store.names("") == ["runs"] and store.names("runs/abc") == ["k" * 12]
    assert store.create_file(f"{store.uri}/once", "a")
    assert not store.create_file(f"{store.uri}/once", "b")
    assert store.read_text(f"{store.uri}/once") == "a"
    assert (store.local_dir(ref) / "deep" / "file.txt").read_text() == "hello"


def test_an_artifact_is_found_listed_and_fetched_as_from_a_local_store(
    remote: Store, tmp_path: Path
) -> None:
    ref = write(remote)
    artifact = remote.find("runs/abc", KEY)
    assert artifact is not None and artifact.ref == ref
    assert artifact.metadata == {"text": "hello"}
    assert remote.list("runs/abc") == [artifact] == [remote.by_id("runs/abc", KEY)]
    assert ref.digest == write(Store(tmp_path / "local")).digest
    folder = remote.local_dir(ref)
    assert (folder / "deep" / "file.txt").read_text() == "hello" and (
        folder / "manifest.json"
    ).is_file()
    Scripted.store.clear()
    assert remote.local_dir(ref) == folder, "a checked copy needs no store"
    assert remote.find("runs/abc", KEY) is None and remote.list("runs/abc") == []


def test_the_first_complete_artifact_of_a_key_stays_in_an_object_store(remote: Store) -> None:
    assert write(remote, "first") == write(remote, "second")


def test_an_upload_that_breaks_off_anywhere_is_unfinished_and_is_written_again(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_files in range(3):
        put, count = MemoryFileSystem.put_file, itertools.count()

        def broken(
            self: Any,
            source: str,
            target: str,
            put: Any = put,
            count: Any = count,
            n: int = num_files,
        ) -> None:
            if next(count) == n:
                raise PermissionError(errno.EACCES, "denied")
            put(self, source, target)

        with monkeypatch.context() as patched:
            patched.setattr(Scripted, "put_file", broken)
            with pytest.raises(UserError, match="the object store refused .*denied.*credentials"):
                write(remote)
        assert len([name for name in Scripted.store if "/runs/" in name]) == num_files
        assert remote.find("runs/abc", KEY) is None and remote.list("runs/abc") == []
    assert write(remote).digest == write(remote).digest


def test_a_fetched_copy_is_checked_and_a_damaged_one_is_discarded(
    remote: Store, tmp_path: Path
) -> None:
    ref = write(remote)
    Scripted().pipe_file(path_in(remote, "deep/file.txt"), b"jello")
    with pytest.raises(UserError, match="deep/file.txt: its bytes differ"):
        remote.local_dir(ref)
    Scripted().rm_file(path_in(remote, "deep/file.txt"))
    with pytest.raises(UserError, match="no longer exists in the store"):
        remote.local_dir(ref)
    assert list((tmp_path / "cache").iterdir()) == []
    assert remote.find("runs/abc", KEY) is None, "a missing file is not finished"


def test_another_artifact_in_the_same_folder_is_refused(
    remote: Store,
) -> None:
    write(remote)
    old = ArtifactRef("runs/abc", KEY, "0" * 64, remote.folder("runs/abc", KEY))
    with pytest.raises(UserError, match="another artifact than digest 000000000000"):
        remote.local_dir(old)


def _fetch(store: Store, ref: ArtifactRef, barrier: Any) -> None:
    barrier.wait(timeout=30)
    assert (store.local_dir(ref) / "deep" / "file.txt").read_text() == "hello"


def test_many_processes_that_fetch_one_artifact_share_one_complete_copy(
    remote: Store, tmp_path: Path
) -> None:
    ref, fork = write(remote), multiprocessing.get_context("fork")
    barrier = fork.Barrier(6)
    readers = [fork.Process(target=_fetch, args=(remote, ref, barrier)) for _ in range(6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert [reader.exitcode for reader in readers] == [0] * 6
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"abc-{ref.digest[:24]}"]


# -- creating a file only if it does not exist ----------------------------------------------------


def test_a_file_system_that_checks_first_and_then_writes_is_refused(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "pipe_file", AbstractFileSystem.pipe_file)
    for refused_call in (
        lambda: remote.create_file(f"{remote.uri}/once", "a"),
        remote.check_writable,
    ):
        with pytest.raises(
            UserError, match="two promotions could both win; use a local folder, s3://"
        ):
            refused_call()
    assert remote.read_text(f"{remote.uri}/once") is None


def test_a_store_that_ignores_the_condition_is_refused_before_any_work(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    overwrite = MemoryFileSystem.pipe_file
    monkeypatch.setattr(
        Scripted, "pipe_file", lambda self, path, value, mode=None: overwrite(self, path, value)
    )
    with pytest.raises(UserError, match="ignores the condition of a create"):
        remote.check_writable()


def test_a_conflict_is_retried_and_an_unnamed_refusal_of_an_existing_file_is_understood(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, answers = (
        MemoryFileSystem.pipe_file,
        [OSError(errno.EBUSY, "conflict"), OSError(errno.EBUSY, "conflict")],
    )

    def busy_at_first(self: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        if answers:
            raise answers.pop()
        if self.exists(path):
            raise OSError(
                errno.EINVAL, "At least one of the pre-conditions you specified did not hold"
            )
        pipe(self, path, value)

    monkeypatch.setattr(Scripted, "pipe_file", busy_at_first)
    assert remote.create_file(f"{remote.uri}/once", "a") and not answers
    assert (
        not remote.create_file(f"{remote.uri}/once", "b")
        and remote.read_text(f"{remote.uri}/once") == "a"
    )


def test_a_refusal_by_the_object_store_is_reported_with_the_path(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Any, path: str, *_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    for method in ("pipe_file", "cat_file", "ls"):
        monkeypatch.setattr(Scripted, method, denied)
    for refused_call in (
        remote.check_writable,
        lambda: remote.create_file(f"{remote.uri}/once", "a"),
        lambda: remote.read_text(f"{remote.uri}/once"),
        lambda: remote.names("things"),
        lambda: remote.find("things", KEY),
    ):
        with pytest.raises(
            UserError, match=rf"{remote.uri}.*the object store refused \(Access Denied\)"
        ):
            refused_call()


def test_a_bucket_that_does_not_exist_and_a_scheme_without_a_package_are_refused(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: Any, path: str, *_: Any, **__: Any) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Scripted, "pipe_file", missing)
    with pytest.raises(UserError, match=f"{remote.uri}: no such bucket"):
        remote.check_writable()
    with pytest.raises(
        UserError,
        match=r"--store nowhere://x: Protocol not known: nowhere; install the fsspec package",
    ):
        Store("nowhere://x").check_writable()


def test_another_processs_file_is_listed_although_the_file_system_caches_listings(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = MemoryFileSystem.ls

    def cached(self: Any, path: str, detail: bool = True, **_: Any) -> Any:
        if path not in self.dircache:
            self.dircache[path] = listing(self, path, detail=True)
        entries: Any = (
            self.dircache[path] if path in self.dircache else listing(self, path, detail=True)
        )
        return entries if detail else [entry["name"] for entry in entries]

    monkeypatch.setattr(Scripted, "ls", cached)
    remote.create_file(f"{remote.uri}/moves/1", "a")
    assert remote.names("moves") == ["1"]
    path = Scripted._strip_protocol(f"{remote.uri}/moves")
    Scripted.store[f"{path}/2"] = Scripted.store[f"{path}/1"]
    assert remote.names("moves") == ["1", "2"]
