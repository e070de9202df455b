"""A progress display that keeps what it would show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ProgressRecorder:
    """Records notes, and the positions and the last text of one bar."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.positions, self.text = [0], ""

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def bar(self, name: str, total: int | None = None) -> Iterator[Any]:
        def advance(count: int = 1, text: str = "") -> None:
            self.positions.append(self.positions[-1] + count)
            self.text = text

        yield advance
