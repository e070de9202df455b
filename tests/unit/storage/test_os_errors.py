"""A store that is full, read-only or misplaced: one line with the path and what to do."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.errors import UserError
from pipelines.storage import Store

KEY = "k" * 64
NOBODY = 65534


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; skipped where mounting one is not permitted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def foreign_folder() -> Iterator[Path]:
    """A folder that the user of `as_stranger` may read and not write."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def as_stranger(work: Callable[[], Any]) -> str:
    """The UserError that `work` raises in a process without root's rights; "" for none."""
    fork = multiprocessing.get_context("fork")
    message = fork.Queue()

    def body() -> None:
        if os.getuid() == 0:
            os.setuid(NOBODY)
        try:
            work()
        except UserError as error:
            message.put(str(error))
        else:
            message.put("")

    process = fork.Process(target=body)
    process.start()
    answer = message.get(timeout=20)
    process.join(20)
    return answer


def fill(store: Store, num_bytes: int) -> None:
    with store.create_artifact("things", KEY) as draft:
        (draft.path / "large").write_bytes(b"x" * num_bytes)


def test_a_write_on_a_full_disk_is_refused_leaves_nothing_and_succeeds_once_there_is_space(
    small_disk: Path,
) -> None:
    store = Store(small_disk / "store")
    store.check_writable()
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (160 << 10))
    with pytest.raises(
        UserError,
        match=rf"{small_disk}/store/.*: the disk is full \(\d+ MiB free\); free space and give "
        "the same command again, or .*--st",
    ):
        fill(store, 200 << 10)
    assert store.find("things", KEY) is None and list(Path(store.uri, "things").iterdir()) == []
    ballast.unlink()
    fill(store, 200 << 10)
    assert store.find("things", KEY) is not None


def test_a_store_on_a_full_disk_is_refused_before_any_work(small_disk: Path) -> None:
    with open(small_disk / "ballast", "wb", buffering=0) as stream, pytest.raises(OSError):
        while True:
            stream.write(b"x" * 4096)
    with pytest.raises(UserError, match=rf"{small_disk}/store: the disk is full"):
        Store(small_disk / "store").check_writable()


def test_a_full_disk_is_recognised_in_the_errors_of_native_libraries(small_disk: Path) -> None:
    np = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")
    store = Store(small_disk / "store")
    with (
        pytest.raises(UserError, match="the disk is full"),
        store.create_artifact("things", KEY) as draft,
    ):
        safetensors.save_file({"w": np.zeros(1 << 20, np.uint8)}, draft.path / "w.safetensors")


def test_a_folder_without_permission_is_refused(foreign_folder: Path) -> None:
    expected = f"{foreign_folder}/store: no permission; choose another place with --store"
    assert as_stranger(Store(foreign_folder / "store").check_writable) == expected
    message = as_stranger(Store(foreign_folder).check_writable)
    assert message.startswith(str(foreign_folder)) and "no permission" in message
    assert "no permission" in as_stranger(lambda: fill(Store(foreign_folder), 1))
    assert "no permission" in as_stranger(
        lambda: Store(foreign_folder).create_file(f"{foreign_folder}/a/b", "x")
    )
    assert list(foreign_folder.iterdir()) == []


def test_an_unreadable_manifest_is_an_error_and_not_an_unfinished_artifact(
    foreign_folder: Path,
) -> None:
    foreign_folder.chmod(0o755)
    store = Store(foreign_folder)
    fill(store, 1)
    Path(store.folder("things", KEY), "manifest.json").chmod(0o000)
    assert "manifest.json: no permission" in as_stranger(lambda: store.find("things", KEY))


def test_a_file_where_the_store_or_a_folder_above_it_must_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        UserError,
        match=rf"{tmp_path}/file: a file with this name exists, where a folder is needed; choose",
    ):
        Store(tmp_path / "file").check_writable()
    with pytest.raises(UserError, match=rf"{tmp_path}/file.*: a part of the path is a file"):
        Store(tmp_path / "file" / "store").check_writable()
    with pytest.raises(UserError, match="a part of the path is a file"):
        fill(Store(tmp_path / "file" / "store"), 1)
    assert (
        Store(tmp_path / "file").list("things") == [] and (tmp_path / "file").read_text() == "mine"
    )


def test_a_store_whose_folder_cannot_be_created_is_refused() -> None:
    with pytest.raises(UserError, match="/proc/store: the folder cannot be created"):
        Store("/proc/store").check_writable()


def test_a_limit_on_file_sizes_is_reported(tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
        fill(Store(tmp_path / "store"), 128 << 10)

    tmp_path.parent.chmod(0o755)
    fork_safe = multiprocessing.get_context("fork").Queue()
    message = _in_a_fork(limited, fork_safe)
    assert "larger than a file may be here (ulimit -f" in message
    assert Store(tmp_path / "store").list("things") == []


def _in_a_fork(work: Callable[[], None], message: Any) -> str:
    def body() -> None:
        try:
            work()
        except UserError as error:
            message.put(str(error))

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    answer = message.get(timeout=20)
    process.join(20)
    return answer


def test_errors_of_files_elsewhere_pass_through_unchanged(store: Store, tmp_path: Path) -> None:
    elsewhere = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "my-source.json"))
    for error in (
        elsewhere,
        FileNotFoundError(errno.ENOENT, "No such file", f"{store.uri}/x"),
        RuntimeError("no"),
    ):
        with pytest.raises(type(error)) as met, store.create_artifact("things", KEY):
            raise error
        assert met.value is error
