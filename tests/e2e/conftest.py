"""A store with registered adapters for tests of the endpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.core.artifacts import ModelVersion
from pipelines.registry.registry import Registry
from pipelines.storage import Store


@pytest.fixture(scope="module")
def registered(
    tmp_path_factory: pytest.TempPathFactory,
    adapter_folders: dict[str, Path],
    pocket_base: str,
    fingerprint: str,
) -> tuple[Store, dict[str, ModelVersion]]:
    """ada and bob in production; "bob2" is bob with cyn's weights, in no alias."""
    store = Store(tmp_path_factory.mktemp("serve") / "store")
    registry = Registry(store)

    def register(model: str, folder: Path) -> ModelVersion:
        return registry.register(
            model, folder, base=pocket_base, base_fingerprint=fingerprint, lineage={}, metrics={}
        )

    versions = {name: register(name, adapter_folders[name]) for name in ("ada", "bob")}
    for name, version in versions.items():
        registry.promote(name, "production", version.id, 0)
    return store, versions | {"bob2": register("bob", adapter_folders["cyn"])}
