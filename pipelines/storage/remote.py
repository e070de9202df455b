"""The few calls that a store makes to an object store, through fsspec."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

from pipelines.core.errors import UserError
from pipelines.storage.os_errors import remote_as_user_error

_CONFLICT_WAITS_S = (0.1, 0.4, 1.6)


class RemoteFiles:
    """Files below one fsspec URI (`s3://`, `gs://`, `memory://`). Raises UserError for what the store refuses."""

    def __init__(self, uri: str) -> None:
        import fsspec

        try:
            # A cached listing would hide what other processes write, such as an alias's last move.
            self._fs: Any = fsspec.filesystem(uri.split("://", 1)[0], use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"--store {uri}: {error}; install the fsspec package for this scheme"
            ) from error

    def read(self, uri: str) -> bytes:
        """One file's bytes. Raises FileNotFoundError."""
        with remote_as_user_error(uri):
            return self._fs.cat_file(uri)

    def get(self, uri: str, path: Path) -> None:
        """Copy one file here. Raises FileNotFoundError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with remote_as_user_error(uri):
            self._fs.get_file(uri, str(path))

    def put(self, path: Path, uri: str) -> None:
        """Copy one local file there."""
        with remote_as_user_error(uri):
            self._fs.put_file(str(path), uri)

    def names(self, uri: str) -> list[str]:
        """What lies directly below a prefix. Raises FileNotFoundError where nothing does."""
        with remote_as_user_error(uri):
            return sorted(
                str(p).rstrip("/").rsplit("/", 1)[-1] for p in self._fs.ls(uri, detail=False)
            )

    def files(self, uri: str) -> set[str]:
        """Names, relative to a prefix, of all files below it."""
        with remote_as_user_error(uri):
            prefix = self._fs._strip_protocol(uri).rstrip("/") + "/"
            return {str(path).removeprefix(prefix) for path in self._fs.find(uri)}

    def create_file(self, uri: str, data: bytes) -> bool:
        """Write a file in one conditional request; False when it exists.

        Raises UserError for a kind of store that can only look first and write then, since two writers could both win.
        """
        self._check_conditional(uri)
        with remote_as_user_error(uri):
            for wait_s in _CONFLICT_WAITS_S:
                try:
                    self._fs.pipe_file(uri, data, mode="create")
                    return True
                except FileExistsError:
                    return False
                except OSError as error:
                    # Not every S3 names the condition that failed, and of two writers at once both may be turned away.
                    if self._fs.exists(uri):
                        return False
                    if error.errno != errno.EBUSY:
                        raise
                    time.sleep(wait_s)
        raise UserError(f"{uri}: busy; other writers hold it, try again")

    def check_writable(self, uri: str, probe: str) -> None:
        """Write, create in vain and delete the file `probe`. Raises UserError when one of them is not possible."""
        try:
            with remote_as_user_error(uri):
                self._fs.pipe_file(probe, b"probe")
                exclusive = not self.create_file(probe, b"probe")
                self._fs.rm_file(probe)
        except FileNotFoundError as error:
            raise UserError(
                f"{uri}: no such bucket or folder; create it or choose another place with --store"
            ) from error
        if not exclusive:
            raise UserError(
                f"{uri}: ignores the condition of a create (If-None-Match), so promotions are not safe there"
            )

    def _check_conditional(self, uri: str) -> None:
        from fsspec.spec import AbstractFileSystem

        if getattr(self._fs.pipe_file, "__func__", None) is AbstractFileSystem.pipe_file:
            raise UserError(
                f"{uri}: {type(self._fs).__name__} cannot create a file on condition that there is none, so two promotions "
                "could both win; use a local folder, s3://, gs:// or abfs://"
            )
