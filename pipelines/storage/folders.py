"""Folders on a local disk that appear whole under their final name, and the check that they still are."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.core.errors import UserError

MANIFEST = "manifest.json"
_LOCK, _GONE = ".lock", ".gone-"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def nearest_path(path: Path) -> Path | None:
    """The name beside a missing path that its writer may have meant."""
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return path.parent / near[0] if near else None


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file below a folder by its relative name, with sha256 and size."""
    return {
        str(PurePosixPath(p.relative_to(folder))): {
            "sha256": sha256_file(p),
            "bytes": p.stat().st_size,
        }
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a local artifact against its manifest and return the manifest.

    Raises UserError naming the first file that is missing, resized or altered.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = {
            name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST}: missing or unreadable ({error})") from error
    for name, (num_bytes, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: listed in the manifest but missing")
        if path.stat().st_size != num_bytes or sha256_file(path) != sha256:
            raise UserError(
                f"{path}: its bytes differ from the manifest's sha256; the file is damaged"
            )
    return manifest


@contextlib.contextmanager
def scratch_folder(root: Path, name: str) -> Iterator[Path]:
    """A hidden, empty folder in `root` for one writer, gone on exit unless it was renamed.

    The writer holds a lock on it for as long as it lives, so what a killed writer of the same name left behind can be
    told from work in progress, and is deleted first.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(f".tmp-{name}-*"):
        with _locked(leftover, wait=False) as orphaned:
            if orphaned:
                shutil.rmtree(leftover, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        while True:
            work = root / f".tmp-{name}-{secrets.token_hex(4)}"
            work.mkdir()
            stack.enter_context(_locked(work))
            if work.exists():  # else another writer took it for an orphan before it was locked
                break
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def publish(work: Path, final: Path, is_whole: Callable[[], bool]) -> None:
    """Rename a synced folder to its final name. What is whole there stays; a broken leftover makes way."""
    sync_tree(work)
    if not _renamed(work, final):
        # Only one process at a time may clear the name, or it could clear away what another has just published.
        with _locked(final.parent):
            if not _renamed(work, final) and not is_whole():
                broken = work.with_name(work.name + ".broken")
                os.rename(final, broken)
                shutil.rmtree(broken, ignore_errors=True)
                _renamed(work, final)
    _sync_dir(final.parent)


def remove(folder: Path) -> None:
    """Delete a folder so that nobody ever sees a part of it; what a killed process left of another deletion goes too."""
    for leftover in folder.parent.glob(f"{_GONE}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    hidden = folder.with_name(f"{_GONE}{folder.name}-{secrets.token_hex(4)}")
    try:
        os.rename(folder, hidden)
    except FileNotFoundError:
        return
    shutil.rmtree(hidden, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Flush a folder's files and the folders themselves to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_dir(path)
    _sync_dir(folder)


def create_file(path: Path, text: str) -> bool:
    """Create a file that did not exist, whole and on the disk; False when it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        with open(temporary, "x") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
        _sync_dir(path.parent)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _renamed(work: Path, final: Path) -> bool:
    try:
        os.rename(work, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


@contextlib.contextmanager
def claimed(folder: Path, work: str) -> Iterator[None]:
    """Inside, no other process that claims the folder does `work` there; the system ends the claim of one that dies.

    Raises UserError naming the process that holds the claim. On a file system without locks nothing is claimed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, *_NO_LOCKS):
                raise
            if error.errno == errno.EWOULDBLOCK:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise UserError(
                    f"{folder}: {holder} {work} already; wait until it ends, or stop it"
                ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Whether this process holds the folder's lock inside; the system frees it when the process dies."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        held = True
    except OSError as error:
        # File systems without locks keep their leftovers; two writers that meet a broken folder there are on their own.
        if error.errno not in (errno.EWOULDBLOCK, *_NO_LOCKS):
            raise
        held = False
    try:
        yield held
    finally:
        os.close(handle)


def _sync_dir(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
