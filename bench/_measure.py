"""What a benchmark says: a figure, the bar that it should reach, and what stands beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One line of the result; `bound` is (at_least or at_most, number), or None for a figure without a bar."""

    bar: str
    value: float
    unit: str = ""
    bound: tuple[str, float] | None = None
    peer: str = ""

    @property
    def holds(self) -> bool:
        """Whether the bar is reached, as NaN reaches none."""
        if self.bound is None:
            return True
        return (
            self.value >= self.bound[1]
            if self.bound[0] == "at_least"
            else self.value <= self.bound[1]
        )


def show(measures: Iterable[Measure], as_json: bool) -> bool:
    """Print each as it comes, for people or as one JSON object a line; whether all bars are reached."""
    held = True
    for measure in measures:
        held &= measure.holds
        print(_json(measure) if as_json else _line(measure), flush=True)
    return held


def _json(measure: Measure) -> str:
    line: dict[str, Any] = {"bar": measure.bar, "value": round(measure.value, 6)}
    line |= {"unit": measure.unit} if measure.unit else {}
    line |= {measure.bound[0]: measure.bound[1]} if measure.bound else {}
    return json.dumps(line | ({"peer": measure.peer} if measure.peer else {}))


def _line(measure: Measure) -> str:
    bound = f"{measure.bound[0].replace('_', ' ')} {measure.bound[1]:g}" if measure.bound else ""
    verdict = ("ok" if measure.holds else "MISSED") if measure.bound else ""
    return f"{measure.bar:80} {measure.value:10.4g} {measure.unit:20} {bound:14} {verdict:7} {measure.peer}"
