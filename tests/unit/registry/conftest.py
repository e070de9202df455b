"""The registry of an empty store."""

from __future__ import annotations

import pytest

from pipelines.registry.registry import Registry
from pipelines.storage import Store


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store)
