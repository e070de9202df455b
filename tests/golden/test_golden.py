"""The loss curves of two recipes equal the golden curves in the repository."""

from __future__ import annotations

import pytest

from tests.golden.compare import CURVES, curves, golden, largest_difference, same_machine


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    return curves(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_equals_the_golden_one(name: str, now: dict[str, list[dict[str, float]]]) -> None:
    """Every bit on the processor that wrote the curve; elsewhere up to its rounding.

    After an intended numerical change write them again: `python -m tests.golden.compare --write`.
    """
    then = golden()[name]
    assert then[-1]["loss"] < 0.5 * then[0]["loss"]
    assert largest_difference(name, now[name], then)[0] <= (0 if same_machine() else 2e-3)
