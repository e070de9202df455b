"""Line charts, bars and histograms as SVG text, drawn with matplotlib.

The same data gives the same bytes: no dates, no random ids. Colours are those of `COLOURS`, which a
page replaces by CSS variables, so that a chart follows the reader's dark mode.
"""

from __future__ import annotations

import html
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Name: colour on a light and on a dark background. A chart is drawn in the light ones.
COLOURS = {
    "chart-text": ("#3b4451", "#c3ccd6"),
    "chart-grid": ("#d3d9e0", "#353c45"),
    "chart-back": ("#fefefe", "#0d1117"),
    "series-1": ("#2f6fbd", "#6cb0ff"),
    "series-2": ("#c2570c", "#ffa657"),
    "series-3": ("#2a8a55", "#56d39a"),
    "series-4": ("#8348b5", "#c69bf5"),
    "series-5": ("#8a6d00", "#e3c341"),
}
_SIZE = (4.4, 2.7)  # inches; charts of one width have text of one size next to one another
_FILE_SIZE = (7.0, 4.0)
_SERIES = [light for name, (light, _) in COLOURS.items() if name.startswith("series")]
_TEXT, _GRID, _BACK = (COLOURS[name][0] for name in ("chart-text", "chart-grid", "chart-back"))


@dataclass(frozen=True)
class Series:
    """One line of a chart: points (x, y) in order of x; a point whose y is None is left out."""

    label: str
    points: Sequence[tuple[float, float | None]]
    markers: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal dashed line at `y`, such as a loss to compare with."""

    label: str
    y: float


@dataclass(frozen=True)
class LineChart:
    """Several series over one axis. A legend appears if there is more than one line."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    log_y: bool = False


def line_chart(chart: LineChart, size: tuple[float, float] = _SIZE) -> str:
    """A line chart as an SVG document; `size` in inches."""
    with _figure(size, chart.title) as (figure, axes):
        _draw_lines(axes, chart)
        return _svg(figure, chart.title)


def save_line_chart(chart: LineChart, path: Path) -> None:
    """Write a line chart to `path`, as SVG or PNG by its suffix."""
    if path.suffix == ".svg":
        path.write_text(line_chart(chart, _FILE_SIZE), encoding="utf-8")
        return
    with _figure(_FILE_SIZE, chart.title) as (figure, axes):
        _draw_lines(axes, chart)
        # Without metadata: it would name matplotlib's release.
        figure.savefig(path, dpi=110, metadata={"Software": None})


def plot_loss(lines: Sequence[Mapping[str, Any]], path: Path, title: str = "Training loss") -> None:
    """Draw the loss of a run's `metrics.jsonl` lines into `path` (.svg or .png).

    The training loss is a line over optimizer steps, held-out losses are points on a second line.
    Steps without a finite loss are left out.
    """
    series = [Series("training", [(line["step"], line["loss"]) for line in lines])]
    heldout = [(line["step"], line.get("heldout_loss")) for line in lines]
    if any(loss is not None for _, loss in heldout):
        series.append(Series("held-out", heldout, markers=True))
    chart = LineChart(title, "optimizer step", "loss (nats per label token)", series, log_y=True)
    save_line_chart(chart, path)


def bar_chart(
    values: Mapping[str, float],
    title: str,
    x_label: str,
    format_value: Callable[[float], str] = "{:g}".format,
    highlight: str | None = None,
    x_max: float | None = None,
) -> str:
    """A horizontal bar for each name, the first on top, with its value as text.

    `highlight` names a bar drawn in a second colour.
    """
    with _figure((_SIZE[0], 1.1 + 0.32 * max(1, len(values))), title) as (figure, axes):
        names = list(values)
        colours = [_SERIES[2 if name == highlight else 0] for name in names]
        bars = axes.barh(range(len(names)), list(values.values()), color=colours, height=0.7)
        for i, (bar, name) in enumerate(zip(bars, names, strict=True)):
            bar.set_gid(f"bar-{i}")
            axes.annotate(
                format_value(values[name]),
                (values[name], i),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=_TEXT,
                fontsize=9,
            )
        axes.set_yticks(range(len(names)), labels=[_clip(name) for name in names])
        axes.invert_yaxis()
        longest = max([*values.values(), 0.0]) or 1.0
        axes.set_xlim(0, (x_max or longest) * 1.18)  # room for the text of the longest bar
        axes.set(xlabel=x_label, title=title)
        axes.grid(axis="x", color=_GRID)
        titles = {
            f"bar-{i}": f"{name}: {format_value(values[name])}" for i, name in enumerate(names)
        }
        return _svg(figure, title, titles)


def histogram_chart(
    edges: Sequence[float],
    counts: Sequence[int],
    title: str,
    x_label: str,
    y_label: str,
    format_edge: Callable[[float], str] = "{:,.0f}".format,
) -> str:
    """Bars of `counts[i]` from `edges[i]` to `edges[i + 1]`; every count above 0 can be seen."""
    with _figure(_SIZE, title) as (figure, axes):
        highest = max([*counts, 1])
        heights = [max(count, highest / 100) if count else 0 for count in counts]
        widths = [(b - a) * 0.94 for a, b in itertools.pairwise(edges)]
        bars = axes.bar(edges[:-1], heights, width=widths, align="edge", color=_SERIES[0])
        for i, bar in enumerate(bars):
            bar.set_gid(f"bar-{i}")
        marks = [edges[0], edges[len(counts) // 2], edges[-1]]
        axes.set_xticks(marks, labels=[format_edge(mark) for mark in marks])
        axes.set_yticks([0, highest], labels=["0", f"{highest:,}"])
        axes.set(xlabel=x_label, ylabel=y_label, title=title, xlim=(edges[0], edges[-1]))
        axes.grid(axis="y", color=_GRID)
        titles = {
            f"bar-{i}": f"{format_edge(edges[i])} to {format_edge(edges[i + 1])}: {count:,}"
            for i, count in enumerate(counts)
        }
        return _svg(figure, title, titles)


def _draw_lines(axes: Axes, chart: LineChart) -> None:
    from matplotlib.ticker import LogFormatter, MaxNLocator

    class PlainLogFormatter(LogFormatter):
        """Labels such as 0.6 where LogFormatter writes 6e-01."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    for i, each in enumerate(chart.series):
        points = [(x, y) for x, y in each.points if y is not None]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=_SERIES[i % len(_SERIES)],
            linewidth=1.3,
            marker="o" if each.markers or len(points) == 1 else None,
            markersize=4,
            label=each.label,
        )
    for level in chart.levels:
        axes.axhline(level.y, color=_TEXT, linestyle="--", linewidth=1, label=level.label)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label, title=chart.title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    if chart.log_y and any(y for each in chart.series for _, y in each.points):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        # Labels between the powers of ten, unless the axis spans more than 1.5 of them.
        axes.yaxis.set_minor_formatter(PlainLogFormatter(minor_thresholds=(1.5, 0.6)))
    axes.grid(which="both", color=_GRID)
    if len(chart.series) + len(chart.levels) > 1:
        axes.legend(frameon=False, labelcolor=_TEXT)


@contextmanager
def _figure(size: tuple[float, float], title: str) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of `size` in inches whose settings hold until the block ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.hashsalt": title,  # otherwise ids are random
        "svg.fonttype": "none",  # text stays text
        "text.parse_math": False,  # a name with two $ is no formula
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.edgecolor": _GRID,
        "axes.labelcolor": _TEXT,
        "axes.titlecolor": _TEXT,
        "axes.facecolor": _BACK,
        "figure.facecolor": _BACK,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)  # a canvas of our own: pyplot would keep state for the process
        yield figure, figure.add_subplot()


def _svg(figure: Figure, title: str, tooltips: Mapping[str, str] | None = None) -> str:
    """The figure as an SVG document: `tooltips` maps an element's gid to its text."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    for gid, text in (tooltips or {}).items():
        opening = f'<g id="{gid}">'
        svg = svg.replace(opening, f"{opening}<title>{html.escape(text)}</title>", 1)
    # Several charts may be part of one page, where an id may stand only once.
    prefix = f"c{sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _clip(name: str, width: int = 28) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"
