"""The plot of a run's loss, for any run."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipelines.report.charts import plot_loss

LINES: dict[str, list[dict[str, Any]]] = {
    "no step": [],
    "one step": [{"step": 1, "loss": 2.0}],
    "a step without a loss": [
        {"step": i, "loss": None if i == 3 else 9.0 - i, "heldout_loss": 7.5} for i in range(1, 6)
    ],
    "no finite loss": [{"step": 1, "loss": None, "heldout_loss": None}],
    "a loss over many powers of ten": [{"step": i, "loss": 10 * 0.7**i} for i in range(1, 40)],
}


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES)
def test_every_run_has_a_plot(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    for suffix, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        plot_loss(lines, tmp_path / f"loss.{suffix}")
        assert (tmp_path / f"loss.{suffix}").read_bytes().startswith(magic)


def test_the_same_run_has_the_same_plot_to_the_byte(tmp_path: Path) -> None:
    for suffix in ("png", "svg"):
        for name in ("a", "b"):
            plot_loss(LINES["a step without a loss"], tmp_path / f"{name}.{suffix}")
        first, second = (tmp_path / f"{name}.{suffix}" for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_a_plot_names_its_axes_with_units_and_its_heldout_points(tmp_path: Path) -> None:
    plot_loss(LINES["a step without a loss"], tmp_path / "loss.svg", title="Loss of a run")
    root = ElementTree.parse(tmp_path / "loss.svg").getroot()
    texts = {node.text or "" for node in root.iter() if "text" in node.tag}
    assert {"Loss of a run", "optimizer step", "loss (nats per label token)"} <= texts
    assert {"training", "held-out"} <= texts
    assert not any("e-0" in text or "e−0" in text for text in texts)
