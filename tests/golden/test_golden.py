"""The loss curves of two recipes are the ones in the repository."""

from __future__ import annotations

import pytest

from tests.golden.compare import CURVES, curves, golden, largest_difference


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    return curves(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", CURVES)
def test_curve(name: str, now: dict[str, list[dict[str, float]]]) -> None:
    """Within what another processor's arithmetic changes; `python -m tests.golden.compare` asks for every bit."""
    then = golden()[name]
    assert then[-1]["loss"] < 0.5 * then[0]["loss"]
    assert largest_difference(name, now[name], then)[0] < 1e-4
