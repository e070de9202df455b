"""The store: artifacts found by their key, written whole or not at all, and small files created once."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.core.artifacts import ArtifactRef
from pipelines.core.digests import digest_of, short
from pipelines.core.errors import UserError
from pipelines.storage.folders import (
    MANIFEST,
    create_file,
    describe_files,
    publish,
    scratch_folder,
    verify,
)
from pipelines.storage.os_errors import as_user_error
from pipelines.storage.remote import RemoteFiles

_PROBE_BYTES = 4096


@dataclass
class Draft:
    """An artifact being written: put files under `path` and what the noun says into `metadata`; `ref` is set at the end."""

    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    ref: ArtifactRef | None = None


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its reference, the facts of its noun and its files' sizes and sha256."""

    ref: ArtifactRef
    metadata: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


class Store:
    """All artifacts below one URI: a local folder, `file://`, or any fsspec URI (`s3://`, `gs://`, `memory://`).

    Raises UserError when the store is read-only, full or cannot be reached, naming the path.
    """

    def __init__(self, uri: str | Path, cache_dir: Path | None = None) -> None:
        text = str(uri)
        self.is_local = "://" not in text or text.startswith("file://")
        self.uri = (
            str(Path(text.removeprefix("file://")).absolute())
            if self.is_local
            else text.rstrip("/")
        )
        self._cache_dir = (
            cache_dir or Path(tempfile.gettempdir()) / f"loraforge-cache-{os.getuid()}"
        )

    def check_writable(self) -> None:
        """Raise UserError, before any work is done, when nothing can be written here."""
        if not self.is_local:
            self._remote.check_writable(self.uri, f"{self.uri}/.probe-{secrets.token_hex(4)}")
            return
        with as_user_error(self.uri, self.uri, first=True):
            Path(self.uri).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.uri) as probe:
                probe.write(b"x" * _PROBE_BYTES)
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
        found = (self.read(f"{self.uri}/{kind}/{name}") for name in self.names(kind))
        return [artifact for artifact in found if artifact]

    def by_digest(self, kind: str, digest: str) -> Artifact:
        """The artifact whose digest starts with `digest` (12 characters or more). Raises UserError when there is none."""
        found = self.list(kind)
        for artifact in found:
            if len(digest) >= 12 and artifact.ref.digest.startswith(digest):
                return artifact
        there = ", ".join(artifact.ref.name for artifact in found) or "none"
        raise UserError(
            f"{self.uri}: no finished artifact of kind {kind!r} has the digest {digest}; there are {there}"
        )

    def read(self, uri: str) -> Artifact | None:
        """The artifact in the folder `uri`, or None where no whole one lies there."""
        text = self.read_text(f"{uri}/{MANIFEST}")
        try:
            manifest = json.loads(text or "")
            ref = ArtifactRef(
                manifest["kind"], manifest["key"], manifest["digest"], uri, manifest["parents"]
            )
            artifact = Artifact(ref, dict(manifest["facts"]), dict(manifest["files"]))
        except (ValueError, KeyError, TypeError):
            return None
        # A manifest from elsewhere shall not make anyone read or write outside of its own folder.
        if any(
            PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
            for name in artifact.files
        ):
            return None
        return artifact if self._has_files(artifact) else None

    @contextlib.contextmanager
    def create_artifact(
        self, kind: str, key: str, parents: Mapping[str, str] | None = None
    ) -> Iterator[Draft]:
        """Write one artifact: on a clean exit it appears whole under its final name, on an error nothing does.

        When another process finished the same key first, its artifact stays and this draft is dropped.
        """
        root = Path(self.uri) / kind if self.is_local else self._cache_dir
        base = self.uri if self.is_local else str(root)
        path = self.folder(kind, key) if self.is_local else base
        with as_user_error(base, path), scratch_folder(root, short(key)) as work:
            draft = Draft(work, parents=dict(parents or {}))
            yield draft
            draft.ref = self._commit(draft, kind, key)

    def local_dir(self, ref: ArtifactRef) -> Path:
        """A local folder with the artifact's files, fetched and checked against their sha256 when the store is remote."""
        if self.is_local:
            return Path(ref.uri)
        name = f"{PurePosixPath(ref.kind).name}-{ref.digest[:24]}"
        target = self._cache_dir / name
        if target.exists():
            return target
        artifact = self.read(ref.uri)
        if artifact is None:
            raise UserError(f"{ref.uri}: the artifact is gone from the store")
        with (
            as_user_error(str(self._cache_dir), str(target)),
            scratch_folder(self._cache_dir, name) as work,
        ):
            for file in [*artifact.files, MANIFEST]:
                self._remote.get(f"{ref.uri}/{file}", work / file)
            if verify(work)["digest"] != ref.digest:
                raise UserError(f"{ref.uri}: holds another artifact than {ref.name} by now")
            publish(work, target, target.exists)
        return target

    def _commit(self, draft: Draft, kind: str, key: str) -> ArtifactRef:
        files = describe_files(draft.path)
        identity = {
            "kind": kind,
            "parents": draft.parents,
            "files": {n: f["sha256"] for n, f in files.items()},
        }
        manifest = {
            "schema": 1,
            "kind": kind,
            "key": key,
            "digest": digest_of(identity),
            "parents": draft.parents,
        }
        manifest |= {"facts": draft.metadata, "files": files}
        final = self.folder(kind, key)
        (draft.path / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        if self.is_local:
            publish(draft.path, Path(final), lambda: self.find(kind, key) is not None)
        elif self.find(kind, key) is None:
            for name in [*files, MANIFEST]:
                self._remote.put(draft.path / name, f"{final}/{name}")
        finished = self.find(kind, key)
        assert finished is not None, final
        return finished.ref

    def _has_files(self, artifact: Artifact) -> bool:
        uri = artifact.ref.uri
        if self.is_local:
            return all(os.path.isfile(f"{uri}/{name}") for name in artifact.files)
        return artifact.files.keys() <= self._remote.files(uri)

    # -- small files ---------------------------------------------------------------------------------------------

    def read_text(self, uri: str) -> str | None:
        """The text of one file, or None when there is none; bytes that are no UTF-8 come as replacement characters."""
        with as_user_error(self.uri, uri):
            try:
                data = Path(uri).read_bytes() if self.is_local else self._remote.read(uri)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return data.decode(errors="replace")

    def create(self, uri: str, text: str) -> bool:
        """Create a file that did not exist, whole and at once; False (and no change) when it exists.

        The one atomic step that compare-and-swap stands on: a hard link locally, a conditional put elsewhere.
        """
        if not self.is_local:
            return self._remote.create(uri, text.encode())
        with as_user_error(self.uri, uri):
            return create_file(Path(uri), text)

    def names(self, folder: str) -> list[str]:
        """Names in a folder of the store (relative to the store's URI), sorted; hidden ones left out."""
        uri = f"{self.uri}/{folder}"
        try:
            found = sorted(os.listdir(uri)) if self.is_local else self._remote.names(uri)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [name for name in found if not name.startswith(".")]

    @property
    def _remote(self) -> RemoteFiles:
        return RemoteFiles(self.uri)
