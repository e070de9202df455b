"""The long tests run with LORAFORGE_CHAOS=1 (`make chaos`); `make test` runs the short ones."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of this folder that are marked slow, unless LORAFORGE_CHAOS is set."""
    for item in items:
        if (
            "chaos" in item.path.parts
            and item.get_closest_marker("slow")
            and not os.environ.get("LORAFORGE_CHAOS")
        ):
            item.add_marker(pytest.mark.skip(reason="long; run `make chaos`"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds that tests recorded."""
    for report in terminalreporter.getreports("passed"):
        for name, seconds in report.user_properties:
            terminalreporter.write_line(f"{seconds:6.1f} s  {name}")


@pytest.fixture(scope="session")
def unbroken_losses(pocket_base: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the small run on two ranks that nothing interrupts."""
    from tests.chaos.checks import check_samples, losses_of
    from tests.chaos.harness import attempt
    from tests.small_run import fresh_args

    args = fresh_args(pocket_base, tmp_path_factory.mktemp("unbroken"))
    assert attempt(args, 2).finished
    check_samples(args)
    losses = losses_of(args)
    assert losses[-1] < 0.1 * losses[0]
    return losses
