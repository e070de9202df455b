"""The long part of the suite runs with LORAFORGE_CHAOS=1 (`make chaos`); `make test` takes the short one."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked slow in this folder unless the whole suite is asked for."""
    for item in items:
        if (
            "chaos" in item.path.parts
            and item.get_closest_marker("slow")
            and not os.environ.get("LORAFORGE_CHAOS")
        ):
            item.add_marker(pytest.mark.skip(reason="long; run `make chaos`"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The seconds that the tests measured on their way."""
    for report in terminalreporter.getreports("passed"):
        for name, seconds in report.user_properties:
            terminalreporter.write_line(f"{seconds:6.1f} s  {name}")
