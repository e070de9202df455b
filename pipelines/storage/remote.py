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
    """Files below one fsspec URI (`s3://`, `gs://`, `memory://`).

    Methods raise UserError when the object store refuses a request.
    """

    def __init__(self, uri: str) -> None:
        import fsspec

        try:
            # A cached listing would hide other processes' files, such as an alias's last move.
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
        """Download one file to `path`. Raises FileNotFoundError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with remote_as_user_error(uri):
            self._fs.get_file(uri, str(path))

    def put(self, path: Path, uri: str) -> None:
        """Upload one local file."""
        with remote_as_user_error(uri):
            self._fs.put_file(str(path), uri)

    def names(self, uri: str) -> list[str]:
        """Names directly below a prefix. Raises FileNotFoundError when there are none."""
        with remote_as_user_error(uri):
            return sorted(
                str(p).rstrip("/").rsplit("/", 1)[-1] for p in self._fs.ls(uri, detail=False)
            )

    def files(self, uri: str) -> set[str]:
        """Names of all files below a prefix, relative to it."""
        with remote_as_user_error(uri):
            prefix = self._fs._strip_protocol(uri).rstrip("/") + "/"
            return {str(path).removeprefix(prefix) for path in self._fs.find(uri)}

    def create_file(self, uri: str, data: bytes) -> bool:
        """Write a file in one conditional request; False when it exists.

        Raises UserError for file systems that can only check first and then write, since two
        writers could both succeed there.
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
                    # Not every S3 names the failed condition, and it may refuse both of two
                    # simultaneous writers as busy: then try again.
                    if self._fs.exists(uri):
                        return False
                    if error.errno != errno.EBUSY:
                        raise
                    time.sleep(wait_s)
        raise UserError(f"{uri}: busy with other writers; give the same command again")

    def check_writable(self, uri: str, probe: str) -> None:
        """Check that a file can be written, not be created twice, and be deleted.

        Uses the file `probe`. Raises UserError when one of these fails.
        """
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
                f"{uri}: ignores the condition of a create (If-None-Match), so two promotions "
                "could both win; choose another place with --store"
            )

    def _check_conditional(self, uri: str) -> None:
        from fsspec.spec import AbstractFileSystem

        if getattr(self._fs.pipe_file, "__func__", None) is AbstractFileSystem.pipe_file:
            raise UserError(
                f"{uri}: {type(self._fs).__name__} cannot create a file only if it does not exist, "
                "so two promotions could both win; use a local folder, s3://, gs:// or abfs://"
            )
