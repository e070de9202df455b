"""Errors of a disk or an object store as one line with the path and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.core.errors import UserError, one_line

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "larger than a file may be here (ulimit -f, or a limit of the file system)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "the file system does not permit it",
    errno.ENOTDIR: "a part of the path is a file",
}
# Expected only in the check before any work; later they would be bugs of this program.
_PREFLIGHT_REASONS = {
    errno.EEXIST: "a file with this name exists, where a folder is needed",
    errno.ENOENT: "the folder cannot be created",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = "choose another place with --store"
# Base errors of the clients that fsspec's file systems use; they share no base class of their own.
_CLIENT_ERRORS = {
    "botocore.exceptions": "BotoCoreError",
    "google.auth.exceptions": "GoogleAuthError",
    "gcsfs.retry": "HttpError",
    "azure.core.exceptions": "AzureError",
    "aiohttp": "ClientError",
    "httpx": "HTTPError",
    "httpx2": "HTTPError",
}


@contextlib.contextmanager
def as_user_error(
    root: str, path: str, preflight: bool = False, wants_bytes: Callable[[], int] | None = None
) -> Iterator[None]:
    """Turn an OS error of the local store at `root` into a UserError that names the file or `path`.

    Errors of files elsewhere pass through, except in the `preflight` check before any work, where
    every error concerns the store. `wants_bytes` gives the bytes that the work needs, 0 if unknown;
    it is asked only when the disk is full.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries in C++ and Rust raise types of their own for a full disk
        code, file = _error_code(error), _file_name(error)
        reasons = _REASONS | _PREFLIGHT_REASONS if preflight else _REASONS
        is_other = preflight and isinstance(error, OSError)
        reason = reasons.get(code, str(error) if is_other else "")
        if not reason or not (preflight or _concerns(file, root)):
            raise
        wants = wants_bytes() if wants_bytes and code in _FULL else 0
        wanted = f", {max(1, wants >> 20)} MiB wanted" if wants else ""
        advice = f"; {_ELSEWHERE}"
        if code in _FULL:
            free = f" ({_free_mib(path)} MiB free{wanted})"
            advice = f"{free}; free space and give the same command again, or {_ELSEWHERE}"
        raise UserError(f"{file or path}: {reason}{advice}") from error


@contextlib.contextmanager
def remote_as_user_error(path: str) -> Iterator[None]:
    """Turn an object store's error into a UserError; FileNotFoundError passes through."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, *client_errors()) as error:
        raise UserError(
            f"{path}: the object store refused ({one_line(error)}); "
            f"check the address, the credentials and the network, or {_ELSEWHERE}"
        ) from error


def client_errors() -> list[type[Exception]]:
    """Base errors of the network clients that this process has imported: no other can be raised."""
    errors = (
        getattr(sys.modules.get(module), name, None) for module, name in _CLIENT_ERRORS.items()
    )
    return [error for error in errors if error is not None]


def _error_code(error: Exception) -> int:
    """The errno of an OSError, else the one whose message is part of the error's text, else 0."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return next((code for code in _REASONS if os.strerror(code) in str(error)), 0)


def _file_name(error: Exception) -> str:
    """The file that an OSError names, or the empty string."""
    name = error.filename if isinstance(error, OSError) else None
    return os.fsdecode(name) if isinstance(name, str | bytes) else ""


def _concerns(file: str, root: str) -> bool:
    """True if an error of this file is one of the store: unnamed, inside the store, or above it."""
    path = Path(file).absolute()
    return not file or path.is_relative_to(root) or Path(root).is_relative_to(path)


def _free_mib(path: str) -> int:
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free >> 20
