"""What a person sees: lines that stay, progress bars while something runs, and one red line for a mistake."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class ConsoleProgress:
    """Draws `contracts.Progress` on a terminal; where there is none (logs, CI) a bar is one line when it ends."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._live: Progress | None = None

    def note(self, text: str) -> None:
        self.console.print(text)

    @contextmanager
    def bar(self, name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[text]}"), console=self.console, transient=True) as live:
            task = live.add_task(name, total=total, text="")

            def advance(count: int = 1, text: str = "") -> None:
                live.update(task, advance=count, text=text)

            yield advance
            done = live.tasks[0]
        rate = done.completed / max(time.monotonic() - started, 1e-9)
        self.console.print(f"[dim]{name}: {done.completed:,.0f} ({rate:,.1f}/s) {done.fields['text']}[/dim]")
