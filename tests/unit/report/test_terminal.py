"""Tables and sparklines for a terminal."""

from __future__ import annotations

from pipelines.report.terminal import clip, sparkline


def test_a_sparkline_shows_every_count_above_zero() -> None:
    assert sparkline([0, 1, 500, 1000]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "
    assert sparkline([]) == ""


def test_a_clipped_text_is_one_line_that_fits() -> None:
    assert clip("a\n  b", 10) == "a b"
    assert clip("x" * 11, 10) == "x" * 9 + "…"
    assert clip("x" * 10, 10) == "x" * 10
