"""The picture of a run's loss, whatever the run went through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.report.charts import plot_loss

LINES: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "one step": [{"step": 1, "loss": 2.0}],
    "a step left out": [
        {"step": i, "loss": None if i == 3 else 9.0 - i, "heldout_loss": 7.5} for i in range(1, 6)
    ],
    "nothing finite": [{"step": 1, "loss": None, "heldout_loss": None}],
    "far down": [{"step": i, "loss": 10 * 0.7**i} for i in range(1, 40)],
}


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES)
def test_a_plot_is_drawn_of_any_run(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    for suffix, begin in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        plot_loss(lines, tmp_path / f"loss.{suffix}")
        assert (tmp_path / f"loss.{suffix}").read_bytes().startswith(begin)
