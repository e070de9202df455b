"""Folders on a local disk: published atomically, claimed by one process, verified and deleted."""

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
    """The sibling of a missing path whose name is the most similar, for a hint in an error."""
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    matches = difflib.get_close_matches(path.name, siblings, n=1)
    return path.parent / matches[0] if matches else None


def without_links(path: Path) -> Path:
    """The absolute path with no link among its folders.

    A link at its end stays: its name may tell the type of a file, and it may lead nowhere.
    """
    full = path.absolute()
    return Path(os.path.normpath(os.path.join(os.path.realpath(full.parent), full.name)))


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The sha256 and size of every file below a folder, by relative name."""
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
    """Yield a hidden, empty folder in `root` for one writer; it is deleted on exit unless renamed.

    The writer locks its folder, and the system frees the lock when the writer dies. That separates
    work in progress from what a killed writer of the same `name` left behind, which is deleted
    first.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(f".tmp-{name}-*"):
        with _locked(leftover, wait=False) as is_orphan:
            if is_orphan:
                shutil.rmtree(leftover, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        while True:
            work = root / f".tmp-{name}-{secrets.token_hex(4)}"
            work.mkdir()
            stack.enter_context(_locked(work))
            if work.exists():  # another writer may have deleted it before it was locked
                break
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def publish(work: Path, final: Path, is_complete: Callable[[], bool]) -> None:
    """Flush the folder `work` to the disk and rename it to `final`.

    An existing folder `final` stays if `is_complete()`, and `work` is then not published; otherwise
    it is a broken leftover and is replaced.
    """
    sync_tree(work)
    if not _renamed(work, final):
        # Only one process may replace the leftover: a second would delete the first one's folder.
        with _locked(final.parent):
            if not _renamed(work, final) and not is_complete():
                broken = work.with_name(work.name + ".broken")
                os.rename(final, broken)
                shutil.rmtree(broken, ignore_errors=True)
                _renamed(work, final)
    _sync_dir(final.parent)


def remove(folder: Path) -> None:
    """Delete a folder so that no reader ever sees it partly deleted.

    Also deletes what killed processes left of earlier deletions in the same parent folder.
    """
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
    """Create a file atomically and flush it to the disk; False when it exists."""
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
    """Let one process at a time work in a folder; `work` names the work in the error of the others.

    The claim ends with the block, or with the process when it dies. Raises UserError, naming the
    process that has the claim, when the folder is claimed already. A file system without locks
    grants every claim.
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
    """Lock a folder for the block; yields False when another process has the lock.

    The system frees the lock when the process dies.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        locked = True
    except OSError as error:
        # Without locks, leftovers stay, and two writers may race to replace a broken folder.
        if error.errno not in (errno.EWOULDBLOCK, *_NO_LOCKS):
            raise
        locked = False
    try:
        yield locked
    finally:
        os.close(handle)


def _sync_dir(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
