"""The long part of the suite runs with LORAFORGE_CHAOS=1 (`make chaos`); `make test` takes the short one."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked slow in this folder unless the whole suite is asked for."""
    for item in items:
        if "chaos" in item.path.parts and item.get_closest_marker("slow") and not os.environ.get("LORAFORGE_CHAOS"):
            item.add_marker(pytest.mark.skip(reason="long; run `make chaos`"))
