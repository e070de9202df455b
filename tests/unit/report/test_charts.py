"""Charts: drawn for any data, the same bytes every time, and text as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipelines.report.charts import (
    COLOURS,
    Level,
    LineChart,
    Series,
    bar_chart,
    histogram_chart,
    line_chart,
    save_line_chart,
)

CHARTS: dict[str, Callable[[], str]] = {
    "lines": lambda: line_chart(
        LineChart(
            "loss <1>",
            "step",
            "nats",
            [Series("a & b", [(0, 1.0), (1, None), (2, 0.5)]), Series("c", [(0, 2.0)])],
            [Level("base", 0.7)],
        )
    ),
    "bars": lambda: bar_chart(
        {"base": 2.0, "step $x$ <b>": 0.5, "n" * 40: 0.0}, "loss <1>", "nats", highlight="base"
    ),
    "histogram": lambda: histogram_chart([0, 1, 2, 3], [0, 1, 1000], "loss <1>", "tokens", "count"),
}


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter() if "text" in node.tag]


@pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS)
def test_the_same_data_gives_the_same_bytes_without_a_date(draw: Callable[[], str]) -> None:
    svg = draw()
    assert svg == draw()
    assert not re.search(r"20\d\d-\d\d-\d\d|Matplotlib v", svg)


@pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS)
def test_a_chart_is_well_formed_and_its_text_is_text(draw: Callable[[], str]) -> None:
    svg = draw()
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "loss <1>" and "loss <1>" in texts(svg)
    colours = set(re.findall(r"#[0-9a-f]{6}\b", svg))
    assert colours <= {light for light, _ in COLOURS.values()}


def test_bars_carry_their_values_and_a_name_is_no_formula() -> None:
    shown = texts(CHARTS["bars"]())
    assert {"2", "0.5", "0", "step $x$ <b>", "n" * 27 + "…"} <= set(shown)


def test_a_bar_has_its_range_and_count_as_a_tooltip_and_a_single_count_can_be_seen() -> None:
    svg = CHARTS["histogram"]()
    titles = re.findall(r'<g id="[^"]*bar-\d"><title>([^<]*)</title>\s*<path d="([^"]*)"', svg)
    assert [title for title, _ in titles] == ["0 to 1: 0", "1 to 2: 1", "2 to 3: 1,000"]
    heights = []
    for _, path in titles:
        y = [float(number) for number in re.findall(r"[-\d.]+ ([-\d.]+)", path)]
        heights.append(max(y) - min(y))
    assert heights[0] == 0 and heights[1] == pytest.approx(heights[2] / 100, rel=0.05)


def test_a_line_chart_is_saved_by_its_suffix(tmp_path: Path) -> None:
    chart = LineChart("t", "x", "y", [Series("a", [(0, 1.0), (1, 2.0)])])
    for suffix, begin in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        save_line_chart(chart, tmp_path / f"chart.{suffix}")
        assert (tmp_path / f"chart.{suffix}").read_bytes().startswith(begin)
