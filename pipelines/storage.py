"""Artifact folders on a local disk or an object store: written whole or not at all, with the manifest last.

A store is a folder tree `STORE/<kind>/<key12>/` whose `manifest.json` names every file with its size and sha256. A local
artifact is built under a hidden temporary name, synced and renamed; on an object store the files go up first and the
manifest last. A folder without a manifest is not an artifact, whatever lies in it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.contracts import ArtifactRef, UserError, digest_of, short

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass
class Draft:
    """An artifact being written: put files under `path` and what the noun says into `facts`; `ref` is set at the end."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    ref: ArtifactRef | None = None


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its reference, the facts of its noun and its files' sizes and sha256."""

    ref: ArtifactRef
    facts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


class Store:
    """All artifacts below one URI: a local folder, `file://`, or any fsspec URI (`s3://`, `gs://`, `memory://`).

    Raises UserError when the store is read-only, full or cannot be reached, naming the path.
    """

    def __init__(self, uri: str | Path, cache_dir: Path | None = None) -> None:
        text = str(uri)
        self.is_local = "://" not in text or text.startswith("file://")
        self.uri = str(Path(text.removeprefix("file://")).absolute()) if self.is_local else text.rstrip("/")
        self._cache_dir = cache_dir or Path(tempfile.gettempdir()) / "loraforge-cache"

    def check_writable(self) -> None:
        """Raise UserError, before any work is done, when nothing can be written here."""
        if not self.is_local:
            self._names(self.uri)
            return
        with self._explaining(self.uri):
            Path(self.uri).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.uri) as probe:
                probe.write(b"x" * 4096)
                probe.flush()

    # -- artifacts -----------------------------------------------------------------------------------------------

    def folder(self, kind: str, key: str) -> str:
        """The URI where the artifact of this key lies or will lie."""
        return f"{self.uri}/{kind}/{short(key)}"

    def find(self, kind: str, key: str) -> Artifact | None:
        """The finished artifact of this key, or None. A manifest of another key or a missing file counts as none."""
        artifact = self.read(self.folder(kind, key))
        return artifact if artifact and artifact.ref.key == key else None

    def list(self, kind: str) -> list[Artifact]:
        """Every finished artifact of a kind, in the order of their keys."""
        names = self._names(f"{self.uri}/{kind}")
        found = (self.read(f"{self.uri}/{kind}/{name}") for name in names if not name.startswith("."))
        return [artifact for artifact in found if artifact]

    def by_digest(self, kind: str, digest: str) -> Artifact:
        """The artifact whose digest starts with `digest` (12 characters or more). Raises UserError when there is none."""
        for artifact in self.list(kind):
            if len(digest) >= 12 and artifact.ref.digest.startswith(digest):
                return artifact
        raise UserError(f"{self.uri}: no finished artifact of kind {kind!r} has the digest {digest}")

    def read(self, uri: str) -> Artifact | None:
        """The artifact in the folder `uri`, or None where no whole one lies there."""
        text = self.read_text(f"{uri}/{MANIFEST}")
        if text is None:
            return None
        try:
            manifest = json.loads(text)
            ref = ArtifactRef(manifest["kind"], manifest["key"], manifest["digest"], uri, manifest["parents"])
        except (ValueError, KeyError, TypeError):
            return None
        if self.is_local and not all(os.path.exists(f"{uri}/{name}") for name in manifest["files"]):
            return None
        return Artifact(ref, manifest["facts"], manifest["files"])

    @contextlib.contextmanager
    def writing(self, kind: str, key: str, parents: Mapping[str, str] | None = None) -> Iterator[Draft]:
        """Write one artifact: on a clean exit it appears whole under its final name, on an error nothing does.

        When another process finished the same key first, its artifact stays and this draft is dropped.
        """
        with self._explaining(f"{self.uri}/{kind}"):
            root = Path(self.uri) / kind if self.is_local else self._cache_dir
            root.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".tmp-{short(key)}-", dir=root))
        draft = Draft(work, parents=dict(parents or {}))
        try:
            with self._explaining(self.folder(kind, key)):
                yield draft
                draft.ref = self._commit(draft, kind, key)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def local_dir(self, ref: ArtifactRef) -> Path:
        """A local folder with the artifact's files, fetched and checked against their sha256 when the store is remote."""
        if self.is_local:
            return Path(ref.uri)
        target = self._cache_dir / f"{ref.kind}-{ref.digest[:24]}"
        if target.exists():
            return target
        artifact = self.read(ref.uri)
        if artifact is None:
            raise UserError(f"{ref.uri}: the artifact is gone from the store")
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self._cache_dir))
        for name in [*artifact.files, MANIFEST]:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            self._remote().get_file(f"{ref.uri}/{name}", str(work / name))
        verify(work)
        with contextlib.suppress(OSError):  # another process was first
            os.replace(work, target)
        shutil.rmtree(work, ignore_errors=True)
        return target

    def _commit(self, draft: Draft, kind: str, key: str) -> ArtifactRef:
        files = {
            str(PurePosixPath(p.relative_to(draft.path))): {"sha256": sha256_file(p), "bytes": p.stat().st_size}
            for p in sorted(draft.path.rglob("*"))
            if p.is_file()
        }
        identity = {"kind": kind, "parents": draft.parents, "files": {n: f["sha256"] for n, f in files.items()}}
        digest = digest_of(identity)
        manifest = {"schema": 1, "kind": kind, "key": key, "digest": digest, "parents": draft.parents}
        manifest |= {"facts": draft.facts, "files": files}
        final = self.folder(kind, key)
        (draft.path / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        if self.is_local:
            sync_tree(draft.path)
            _replace_folder(draft.path, Path(final), lambda: self.find(kind, key))
        else:
            for name in [*files, MANIFEST]:
                self._remote().put_file(str(draft.path / name), f"{final}/{name}")
        finished = self.find(kind, key)
        assert finished is not None, final
        return finished.ref

    # -- small files ---------------------------------------------------------------------------------------------

    def read_text(self, uri: str) -> str | None:
        """The text of one file, or None when there is none."""
        try:
            if self.is_local:
                return Path(uri).read_text()
            return self._remote().cat_file(uri).decode()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create(self, uri: str, text: str) -> bool:
        """Create a file that did not exist, whole and at once; False (and no change) when it exists.

        The one atomic step that compare-and-swap stands on: a hard link locally, a conditional put elsewhere.
        """
        if not self.is_local:
            try:
                self._remote().pipe_file(uri, text.encode(), mode="create")
            except FileExistsError:
                return False
            return True
        with self._explaining(uri):
            folder = Path(uri).parent
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=folder)
            try:
                with os.fdopen(handle, "w") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.link(temporary, uri)
                _sync_dir(folder)
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
        return True

    def names(self, folder: str) -> list[str]:
        """Names in a folder of the store (relative to the store's URI), sorted; hidden ones left out."""
        return [name for name in self._names(f"{self.uri}/{folder}") if not name.startswith(".")]

    def _names(self, uri: str) -> list[str]:
        try:
            if self.is_local:
                return sorted(os.listdir(uri))
            return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in self._remote().ls(uri, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _remote(self) -> Any:
        import fsspec

        try:
            return fsspec.filesystem(self.uri.split("://", 1)[0])
        except (ImportError, ValueError) as error:
            raise UserError(f"--store {self.uri}: {error}; install the fsspec package for this scheme") from error

    @contextlib.contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reasons = {errno.ENOSPC: "the disk is full", errno.EROFS: "the file system is read-only"}
            reasons |= {errno.EACCES: "no permission to write", errno.ENOTDIR: "a part of the path is a file"}
            if error.errno not in reasons:
                raise
            free = f" ({shutil.disk_usage(_existing(path)).free >> 20} MiB free)" if self.is_local else ""
            advice = "free space or choose another folder with --store"
            raise UserError(f"{error.filename or path}: {reasons[error.errno]}{free}; {advice}") from error


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a local artifact against its manifest and return the manifest.

    Raises UserError naming the first file that is missing, resized or altered.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST}: missing or unreadable ({error})") from error
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: listed in the manifest but missing")
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            raise UserError(f"{path}: its bytes differ from the manifest's sha256; the file is damaged")
    return manifest


def sync_tree(folder: Path) -> None:
    """Flush a folder's files and the folders themselves to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_dir(path)
    _sync_dir(folder)


def _sync_dir(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_folder(work: Path, final: Path, finished: Any) -> None:
    """Rename `work` to `final`; a broken leftover under that name is moved out of the way, a whole one stays."""
    try:
        os.rename(work, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if finished() is not None:
            return
        os.rename(final, work.with_name(work.name + ".broken"))
        os.rename(work, final)
        shutil.rmtree(work.with_name(work.name + ".broken"), ignore_errors=True)
    _sync_dir(final.parent)


def _existing(path: str) -> Path:
    here = Path(path)
    while not here.exists():
        here = here.parent
    return here
