"""The store: artifacts found by their key and written atomically, and small files created once."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pipelines.core.artifacts import ArtifactRef
from pipelines.core.digests import digest_of, short
from pipelines.core.errors import UserError
from pipelines.core.noun_json import from_json, map_uris, to_json
from pipelines.storage.folders import (
    MANIFEST,
    create_file,
    describe_files,
    publish,
    scratch_folder,
    verify,
)
from pipelines.storage.manifest_schema import SCHEMA, is_readable
from pipelines.storage.os_errors import as_user_error
from pipelines.storage.remote import RemoteFiles

T = TypeVar("T")

_PROBE_BYTES = 4096
_MIN_PREFIX = 4


@dataclass
class Draft:
    """An artifact being written: put its files under `path` and the noun's fields into `metadata`.

    `ref` is None until the artifact is finished.
    """

    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    ref: ArtifactRef | None = None


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its reference, its noun's fields, and each file's size and sha256."""

    ref: ArtifactRef
    metadata: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


class Store:
    """All artifacts below one URI.

    The URI is a local folder, `file://`, or any fsspec URI (`s3://`, `gs://`, `memory://`). Methods
    raise UserError, naming the path, when the store is read-only, full or cannot be reached.
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
        """Raise UserError when nothing can be written here; to be called before any work."""
        if not self.is_local:
            self._remote.check_writable(self.uri, f"{self.uri}/.probe-{secrets.token_hex(4)}")
            return
        with as_user_error(self.uri, self.uri, preflight=True):
            Path(self.uri).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.uri) as probe:
                probe.write(b"x" * _PROBE_BYTES)
                probe.flush()

    # -- artifacts ---------------------------------------------------------------------------

    def folder(self, kind: str, key: str) -> str:
        """The URI of the folder for the artifact of this key, whether it exists or not."""
        return f"{self.uri}/{kind}/{short(key)}"

    def find(self, kind: str, key: str) -> Artifact | None:
        """The finished artifact of this key, or None, also when one of its files is missing."""
        artifact = self.read(self.folder(kind, key))
        return artifact if artifact and artifact.ref.key == key else None

    def list(self, kind: str) -> list[Artifact]:
        """Every finished artifact of a kind, sorted by key."""
        artifacts = (self.read(f"{self.uri}/{kind}/{name}") for name in self.names(kind))
        return [artifact for artifact in artifacts if artifact]

    def by_id(self, kind: str, prefix: str) -> Artifact:
        """The one artifact whose id (its key) starts with `prefix`.

        Raises UserError, listing the ids, when the prefix is shorter than 4 characters or matches
        no artifact or several.
        """
        artifacts = self.list(kind)
        matches = [artifact for artifact in artifacts if artifact.ref.key.startswith(prefix)]
        if len(prefix) >= _MIN_PREFIX and len(matches) == 1:
            return matches[0]
        ids = ", ".join(artifact.ref.name for artifact in artifacts) or "none"
        problem = f"no finished artifact of kind {kind!r} has the id {prefix}; there are {ids}"
        if len(prefix) < _MIN_PREFIX:
            problem = f"{prefix!r} is too short for an id, give {_MIN_PREFIX} characters or more; "
            problem += f"of kind {kind!r} there are {ids}"
        elif matches:
            ids = ", ".join(artifact.ref.name for artifact in matches)
            problem = f"several ids of kind {kind!r} start with {prefix}: {ids}; give more of it"
        raise UserError(f"{self.uri}: {problem}")

    def read(self, uri: str) -> Artifact | None:
        """The artifact in the folder `uri`, or None when it is unfinished or of a past schema."""
        text = self.read_text(f"{uri}/{MANIFEST}")
        try:
            manifest = json.loads(text or "")
            ref = ArtifactRef(
                manifest["kind"], manifest["key"], manifest["digest"], uri, manifest["parents"]
            )
            schema = int(manifest["schema"])
            metadata = manifest["metadata" if schema > 1 else "facts"]
            artifact = Artifact(ref, dict(metadata), dict(manifest["files"]))
        except (ValueError, KeyError, TypeError):
            return None
        if not is_readable(ref.kind, schema):
            return None
        # A foreign manifest must not make anyone read or write outside of its own folder.
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
        """Write one artifact: a clean exit publishes it under its final name, an error discards it.

        When another process finished the same key first, its artifact stays and this draft is
        dropped.
        """
        root = Path(self.uri) / kind if self.is_local else self._cache_dir
        base = self.uri if self.is_local else str(root)
        path = self.folder(kind, key) if self.is_local else base
        with as_user_error(base, path), scratch_folder(root, short(key)) as work:
            draft = Draft(work, parents=dict(parents or {}))
            yield draft
            draft.ref = self._commit(draft, kind, key)

    def local_dir(self, ref: ArtifactRef) -> Path:
        """A local folder with the artifact's files.

        Files of a remote store are fetched into the cache and checked against their sha256.
        """
        if self.is_local:
            return Path(ref.uri)
        name = f"{PurePosixPath(ref.kind).name}-{ref.digest[:24]}"
        target = self._cache_dir / name
        if target.exists():
            return target
        artifact = self.read(ref.uri)
        if artifact is None:
            raise UserError(f"{ref.uri}: the artifact no longer exists in the store")
        with (
            as_user_error(str(self._cache_dir), str(target)),
            scratch_folder(self._cache_dir, name) as work,
        ):
            for file in [*artifact.files, MANIFEST]:
                self._remote.get(f"{ref.uri}/{file}", work / file)
            if verify(work)["digest"] != ref.digest:
                raise UserError(
                    f"{ref.uri}: now contains another artifact than digest {short(ref.digest)}"
                )
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
            "schema": SCHEMA,
            "kind": kind,
            "key": key,
            "digest": digest_of(identity),
            "parents": draft.parents,
        }
        manifest |= {"metadata": draft.metadata, "files": files}
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

    # -- references --------------------------------------------------------------------------

    def relative(self, uri: str) -> str:
        """A URI inside this store as a path relative to it; any other URI unchanged."""
        return uri.removeprefix(f"{self.uri}/")

    def resolve(self, uri: str) -> str:
        """The inverse of `relative`: a relative path joined to this store's URI."""
        return uri if "://" in uri or uri.startswith("/") else f"{self.uri}/{uri}"

    def noun_to_json(self, noun: Any) -> dict[str, Any]:
        """A noun as JSON for an artifact's metadata: its references are relative to this store."""
        return to_json(map_uris(noun, self.relative))

    def noun_from_json(self, cls: type[T], data: Mapping[str, Any]) -> T:
        """Rebuild a noun from `noun_to_json`; its references point into this store."""
        return map_uris(from_json(cls, data), self.resolve)

    # -- small files -------------------------------------------------------------------------

    def read_text(self, uri: str) -> str | None:
        """The text of one file, or None when it does not exist.

        Bytes that are not UTF-8 come back as replacement characters.
        """
        with as_user_error(self.uri, uri):
            try:
                data = Path(uri).read_bytes() if self.is_local else self._remote.read(uri)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return data.decode(errors="replace")

    def create_file(self, uri: str, text: str) -> bool:
        """Create a file atomically; False (and no change) when it exists.

        Compare-and-swap builds on this one atomic step: a hard link locally, a conditional put
        elsewhere.
        """
        if not self.is_local:
            return self._remote.create_file(uri, text.encode())
        with as_user_error(self.uri, uri):
            return create_file(Path(uri), text)

    def names(self, folder: str) -> list[str]:
        """Sorted names in a folder, given relative to the store's URI, without hidden ones."""
        uri = f"{self.uri}/{folder}"
        with as_user_error(self.uri, uri):
            try:
                names = sorted(os.listdir(uri)) if self.is_local else self._remote.names(uri)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return [name for name in names if not name.startswith(".")]

    @property
    def _remote(self) -> RemoteFiles:
        return RemoteFiles(self.uri)
