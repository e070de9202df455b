"""Small charts and clipped text for a terminal, shared by the commands."""

from __future__ import annotations

from collections.abc import Sequence

_BARS = " ▁▂▃▄▅▆▇█"


def sparkline(counts: Sequence[int]) -> str:
    """One character of rising height for each count; every count above 0 can be seen."""
    highest = max([*counts, 1])
    steps = len(_BARS) - 1
    return "".join(_BARS[-(-steps * count // highest)] for count in counts)


def clip(text: str, width: int = 160) -> str:
    """Text in one line of at most `width` characters, with an ellipsis where it was cut."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
