"""Tables and small charts for a terminal, shared by the commands."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.table import Table

_BARS = " ▁▂▃▄▅▆▇█"


def titled_table(title: str, *columns: str, numbers: Collection[str] = ()) -> Table:
    """An empty table with its title on the left; columns in `numbers` are aligned to the right.

    Long cells are folded, never cut.
    """
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table


def sparkline(counts: Sequence[int]) -> str:
    """One character of rising height for each count; every count above 0 can be seen."""
    highest = max([*counts, 1])
    steps = len(_BARS) - 1
    return "".join(_BARS[-(-steps * count // highest)] for count in counts)


def clip(text: str, width: int = 160) -> str:
    """Text in one line of at most `width` characters, with an ellipsis where it was cut."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
