"""Tables and sparklines for a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from pipelines.report.terminal import clip, sparkline, titled_table


def test_a_sparkline_shows_every_count_above_zero() -> None:
    assert sparkline([0, 1, 500, 1000]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "
    assert sparkline([]) == ""


def test_a_clipped_text_is_one_line_that_fits() -> None:
    assert clip("a\n  b", 10) == "a b"
    assert clip("x" * 11, 10) == "x" * 9 + "…"
    assert clip("x" * 10, 10) == "x" * 10


def test_a_table_folds_long_cells_and_aligns_numbers_to_the_right() -> None:
    table = titled_table("title", "name", "count", numbers=["count"])
    table.add_row("n" * 50, "1")
    table.add_row("m", "1,000")
    screen = io.StringIO()
    Console(file=screen, width=30).print(table)
    text = screen.getvalue()
    assert text.startswith("title") and text.count("n") >= 50
    assert "│     1 │" in text
