"""What a disk or an object store can refuse, told as one line with the path and what to do."""

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
# What only the check before any work may meet; later these are the program's own faults.
_FIRST_REASONS = {
    errno.EEXIST: "a file lies there, not a folder",
    errno.ENOENT: "the folder cannot be made",
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
    root: str, path: str, first: bool = False, wants_bytes: Callable[[], int] | None = None
) -> Iterator[None]:
    """Turn what the local store at `root` refuses into a UserError; errors of other files pass through.

    `first` marks the check before any work, where every error is the store's. `wants_bytes` says what the work at `path`
    needs there; 0 where that is not known.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # raised again unless it is the disk's; libraries in C++ and Rust have types of their own
        code, named = _code(error), _file(error)
        reasons = _REASONS | _FIRST_REASONS if first else _REASONS
        reason = reasons.get(code, str(error) if first and isinstance(error, OSError) else "")
        if not reason or not (first or _belongs(named, root)):
            raise
        wants = wants_bytes() if wants_bytes and code in _FULL else 0
        wanted = f", {max(1, wants >> 20)} MiB wanted" if wants else ""
        full = f" ({_free_mib(path)} MiB free{wanted}); free space and give the same command again, or {_ELSEWHERE}"
        advice = full if code in _FULL else f"; {_ELSEWHERE}"
        raise UserError(f"{named or path}: {reason}{advice}") from error


@contextlib.contextmanager
def remote_as_user_error(path: str) -> Iterator[None]:
    """Turn what an object store refuses into a UserError, but for a missing file, which is an answer."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, *client_errors()) as error:
        raise UserError(
            f"{path}: the object store refused ({one_line(error)}); check the address, the credentials and the network, "
            f"or {_ELSEWHERE}"
        ) from error


def client_errors() -> list[type[Exception]]:
    """Base errors of the network clients that this process has imported: no other can be raised."""
    errors = (
        getattr(sys.modules.get(module), name, None) for module, name in _CLIENT_ERRORS.items()
    )
    return [error for error in errors if error is not None]


def _code(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return next((code for code in _REASONS if os.strerror(code) in str(error)), 0)


def _file(error: Exception) -> str:
    name = error.filename if isinstance(error, OSError) else None
    return os.fsdecode(name) if isinstance(name, str | bytes) else ""


def _belongs(named: str, root: str) -> bool:
    here = Path(named).absolute()
    return not named or here.is_relative_to(root) or Path(root).is_relative_to(here)


def _free_mib(path: str) -> int:
    here = Path(path)
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free >> 20
