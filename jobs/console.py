"""Progress on a terminal: lines that stay, and a bar while something runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

_LOG_COLUMNS = 120
_LOG_EVERY_S = 60.0


class ConsoleProgress:
    """Draws `core.progress.Progress` on a terminal.

    Elsewhere (logs, CI) a bar is one line per minute and one when it ends.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(
            highlight=False, width=None if sys.stdout.isatty() else _LOG_COLUMNS
        )

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        started, done, last_text = time.monotonic(), 0, ""
        logged = started
        bars = _Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}" + (f" of {total:,}" if total else "")),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bars:
            task = bars.add_task(name, total=total, text="", rate="")

            def advance(count: int = 1, text: str = "") -> None:
                nonlocal done, last_text, logged
                done, last_text = done + count, text or last_text
                if self.console.is_terminal:
                    rate = f"{done / max(time.monotonic() - started, 1e-9):,.1f}/s"
                    bars.update(task, advance=count, text=last_text, rate=rate)
                elif time.monotonic() - logged >= _LOG_EVERY_S:
                    logged = time.monotonic()
                    of_total = f" of {total:,}" if total else ""
                    self.note(f"  {name}: {done:,}{of_total} {last_text}".rstrip())

            yield advance
        rate = done / max(time.monotonic() - started, 1e-9)
        self.note(f"  {name}: {done:,} ({rate:,.1f}/s) {last_text}".rstrip())


class _Bars(Progress):
    """A bar with its text on the lines below, where a narrow terminal can wrap it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then their texts."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["text"]:
                yield Text("  " + task.fields["text"])
