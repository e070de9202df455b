"""Charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_loss(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a run's loss a step and its held-out losses into `path` (.svg or .png)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(
        [line["step"] for line in lines],
        [line["loss"] for line in lines],
        linewidth=1,
        label="training",
    )
    heldout = [
        (line["step"], line["heldout_loss"])
        for line in lines
        if line.get("heldout_loss") is not None
    ]
    if heldout:
        axes.plot(*zip(*heldout, strict=True), marker="o", linewidth=1, label="held-out")
    axes.set(xlabel="step", ylabel="loss a token", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(
        LogFormatter(minor_thresholds=(1.5, 0.6))
    )  # 6, not 6 x 10^0; none on a long axis
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path)
