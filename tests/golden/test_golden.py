"""The loss curves of two recipes are the ones in the repository."""

from __future__ import annotations

import pytest

from tests.golden.compare import CURVES, curves, golden, largest_difference, same_machine


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    return curves(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", CURVES)
def test_curve(name: str, now: dict[str, list[dict[str, float]]]) -> None:
    """Every bit where the curve was written, and within what another processor's arithmetic changes elsewhere.

    A change that is meant to be numerical writes them anew: `python -m tests.golden.compare --write`.
    """
    then = golden()[name]
    assert then[-1]["loss"] < 0.5 * then[0]["loss"]
    assert largest_difference(name, now[name], then)[0] <= (0 if same_machine() else 2e-3)
