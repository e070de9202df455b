"""The interface through which a stage reports progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """Shows notes and progress bars of a stage.

    The command line draws it; tests and libraries use `SILENT`.
    """

    def note(self, text: str) -> None:
        """Print one line that stays on the screen."""
        ...

    def bar(self, name: str, total: int | None = None) -> Any:
        """A context manager yielding `advance(count: int = 1, text: str = "") -> None`."""
        ...


class _Silent:
    def note(self, text: str) -> None: ...

    @contextmanager
    def bar(self, name: str, total: int | None = None) -> Iterator[Any]:
        yield lambda count=1, text="": None


SILENT: Progress = _Silent()
