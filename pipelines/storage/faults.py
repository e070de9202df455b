"""What a disk or an object store can refuse, told as one line with the path and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.contracts import UserError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "larger than a file may be here (ulimit -f, or a limit of the file system)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "the file system does not permit it",
    errno.ENOTDIR: "a part of the path is a file",
}
_ADVICE = "free space or choose another place with --store"
# Object stores' own errors, by module; they exist only where the module is loaded already.
_REMOTE_ERRORS = {
    "botocore.exceptions": "BotoCoreError",
    "google.auth.exceptions": "GoogleAuthError",
    "gcsfs.retry": "HttpError",
    "azure.core.exceptions": "AzureError",
    "aiohttp": "ClientError",
}


@contextlib.contextmanager
def explaining(root: str, path: str, any_error: bool = False) -> Iterator[None]:
    """Turn what the local store at `root` refuses into a UserError; other people's errors pass through.

    `any_error` also explains reasons that have no words of their own.
    """
    try:
        yield
    except OSError as error:
        named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        reason = _REASONS.get(error.errno or 0) or (error.strerror or str(error) if any_error else "")
        if not reason or not (any_error or _belongs(named, root)):
            raise
        raise UserError(f"{named or path}: {reason} ({_free_mib(path)} MiB free); {_ADVICE}") from error


@contextlib.contextmanager
def explaining_remote(path: str) -> Iterator[None]:
    """Turn what an object store refuses into a UserError, but for a missing file, which is an answer."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, *_remote_errors()) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: the object store refused ({reason}); check the address, the credentials and the network, "
            "or choose another place with --store"
        ) from error


def _remote_errors() -> list[type[Exception]]:
    found = (getattr(sys.modules.get(module), name, None) for module, name in _REMOTE_ERRORS.items())
    return [error for error in found if error is not None]


def _belongs(named: str, root: str) -> bool:
    here = Path(named).absolute()
    return not named or here.is_relative_to(root) or Path(root).is_relative_to(here)


def _free_mib(path: str) -> int:
    here = Path(path)
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free >> 20
