"""Writing a file that must not exist yet."""

from __future__ import annotations

from pathlib import Path

from pipelines.core.errors import UserError


def check_absent(path: Path, force: bool) -> None:
    """Raise UserError if `path` exists and `force` is off, before any work is done for it."""
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; choose another path, or add --force")


def write_new(path: Path, text: str, force: bool) -> None:
    """Write a file that must not exist yet, unless `force`. Raises UserError."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        check_absent(path, force)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
