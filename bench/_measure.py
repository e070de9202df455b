"""One result of a benchmark: a figure, its target and the peer that it is compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One line of the result; `bound` is (at_least or at_most, number), None without a target."""

    bar: str
    value: float
    unit: str = ""
    bound: tuple[str, float] | None = None
    peer: str = ""

    @property
    def is_met(self) -> bool:
        """True if the target is met; NaN meets none."""
        if self.bound is None:
            return True
        return (
            self.value >= self.bound[1]
            if self.bound[0] == "at_least"
            else self.value <= self.bound[1]
        )


def show(measures: Iterable[Measure], as_json: bool) -> bool:
    """Print each measure as it arrives, as text or JSON; returns whether all targets are met."""
    all_met = True
    for measure in measures:
        all_met &= measure.is_met
        print(_json(measure) if as_json else _line(measure), flush=True)
    return all_met


def _json(measure: Measure) -> str:
    line: dict[str, Any] = {"bar": measure.bar, "value": round(measure.value, 6)}
    line |= {"unit": measure.unit} if measure.unit else {}
    line |= {measure.bound[0]: measure.bound[1]} if measure.bound else {}
    return json.dumps(line | ({"peer": measure.peer} if measure.peer else {}))


def _line(measure: Measure) -> str:
    bound = f"{measure.bound[0].replace('_', ' ')} {measure.bound[1]:g}" if measure.bound else ""
    verdict = ("ok" if measure.is_met else "MISSED") if measure.bound else ""
    figure = f"{measure.bar:80} {measure.value:10.4g} {measure.unit:20}"
    return f"{figure} {bound:14} {verdict:7} {measure.peer}"
