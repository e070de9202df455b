"""What a person sees: lines that stay, and a bar while something runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_LOG_COLUMNS = 120


class ConsoleProgress:
    """Draws `contracts.Progress` on a terminal; where there is none (logs, CI) a bar is one line when it ends."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else _LOG_COLUMNS)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        started, done, said = time.monotonic(), 0, ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}" + (f" of {total:,}" if total else "")),
            TimeElapsedColumn(),
        )
        drawn = Progress(
            *columns,
            TextColumn("{task.fields[text]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with drawn:
            task = drawn.add_task(name, total=total, text="")

            def advance(count: int = 1, text: str = "") -> None:
                nonlocal done, said
                done, said = done + count, text or said
                drawn.update(task, advance=count, text=said)

            yield advance
        rate = done / max(time.monotonic() - started, 1e-9)
        self.note(f"  {name}: {done:,} ({rate:,.1f}/s) {said}".rstrip())
