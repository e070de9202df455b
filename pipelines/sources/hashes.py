"""Content digests of local and remote files, remembered between commands so that a file is read
once.

An entry is keyed by what the file system says about the file (device, inode, size, mtime and ctime
in nanoseconds) or by an object store's ETag. An entry about a file that changed less than two
seconds before it was hashed is not stored: on file systems with coarse timestamps, a second write
could leave size and times as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError, one_line
from pipelines.sources.open import open_binary
from pipelines.storage import client_errors

_SETTLED_NS = 2_000_000_000


class FileHashes:
    """SHA-256 digests of files and small facts derived from them.

    `folder` is where entries are stored; None is the user's cache. With `verify`, stored entries
    are ignored and every file is hashed again, at most once per object. `num_bytes` and `paths`
    record what was really read.
    """

    def __init__(self, folder: Path | None = None, verify: bool = False) -> None:
        self.folder = folder or _user_cache() / "loraforge" / "hashes"
        self._verify = verify
        self._memo: dict[str, Any] = {}
        self._computed: set[str] = set()  # keys in the memo that this object computed itself
        self.paths: list[str] = []
        self.num_bytes = 0

    def sha256(self, path: str | Path, fresh: bool = False) -> str:
        """Hex SHA-256 of a file's bytes.

        With `fresh`, only a digest that this object computed itself counts, not a stored one: use
        it before an irreversible act such as a promotion. Raises UserError when a remote file
        cannot be reached and OSError when a local one cannot be read.
        """
        name = str(path)
        return self._remember("sha256", [name], lambda: self._read(name), fresh)

    def remember(
        self, label: str, paths: Iterable[str | Path], compute: Callable[[], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """A small JSON-like fact derived from files, computed again once any of them changes.

        `label` names the fact and the version of the code that computes it.
        """
        return self._remember(label, [str(path) for path in paths], lambda: dict(compute()), False)

    def _remember(
        self, label: str, paths: list[str], compute: Callable[[], Any], fresh: bool
    ) -> Any:
        states = [_state(path) for path in paths]
        if None in states:
            return compute()
        key = digest_of([label, states])
        if key in (self._computed if fresh or self._verify else self._memo):
            return self._memo[key]
        file = self.folder / key[:2] / f"{key[2:]}.json"
        value = None if fresh or self._verify else _read_entry(file)
        if value is not None:
            self._memo[key] = value
            return value
        started = time.time_ns()
        value = compute()
        # A file that changed while it was read gets no entry, and is hashed again next time.
        if [_state(path) for path in paths] == states:
            self._memo[key] = value
            self._computed.add(key)
            if all(started - _last_change(state) > _SETTLED_NS for state in states):
                _write_entry(file, value)
        return value

    def _read(self, path: str) -> str:
        self.paths.append(path)
        digest = hashlib.sha256()
        try:
            with open_binary(path) as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    self.num_bytes += len(block)
        except tuple(client_errors()) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error, 200)})") from error
        return digest.hexdigest()


def _state(path: str) -> list[Any] | None:
    """A value that changes with a file's content, without reading it; None if there is none."""
    if "://" in path:
        etag = _etag(path)
        return [path, etag] if etag else None
    status = os.stat(path)
    # The path is part of the state: on FUSE mounts of object stores, inode numbers are not stable.
    return [
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        os.path.realpath(path),
    ]


def _etag(uri: str) -> str | None:
    """An object store's version of an object's content; None if the store has none."""
    import fsspec

    try:
        file_system, name = fsspec.core.url_to_fs(uri)
        info = file_system.info(name)
    except (OSError, ValueError, RuntimeError, ImportError, *client_errors()):
        return None  # the error is reported when the file is read
    versions = (info.get(name) for name in ("ETag", "etag", "blob_id", "generation", "md5Hash"))
    # A weak ETag (W/...) stands for equivalent content, not for equal bytes.
    return next((str(v) for v in versions if v and not str(v).startswith("W/")), None)


def _last_change(state: list[Any] | None) -> int:
    """When a local file changed last, in ns since the epoch; 0 for an object with an ETag."""
    return max(state[3:5]) if state and len(state) > 2 else 0


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _read_entry(file: Path) -> Any:
    try:
        return json.loads(file.read_text())["value"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_entry(file: Path, value: Any) -> None:
    """Store an entry atomically. A cache that cannot be written only costs time."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"value": value}))
        os.replace(temporary, file)
