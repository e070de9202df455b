"""Adapters that cannot be served, and a registry with three that can."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.chat import ChatRenderer
from pipelines.core.artifacts import TemplateChoice
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from serve_app.engines.transformers.renderers import Renderers


@pytest.fixture(scope="session")
def misfit_folder(
    adapter_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An adapter for a base with wider projections."""
    return _rewritten(
        adapter_folders["ada"],
        tmp_path_factory.mktemp("misfit"),
        lambda t: torch.cat([t, t], dim=-1),
    )


@pytest.fixture(scope="session")
def overflowing_folder(
    adapter_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An adapter with finite weights whose products overflow."""
    return _rewritten(
        adapter_folders["ada"], tmp_path_factory.mktemp("overflowing"), lambda t: t * 1e30
    )


def _rewritten(source: Path, target: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    from safetensors.torch import load_file, save_file

    from pipelines.adapter_format.peft_files import CONFIG_FILE, WEIGHTS_FILE

    tensors = {
        name: change(tensor).contiguous()
        for name, tensor in load_file(source / WEIGHTS_FILE).items()
    }
    save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
    shutil.copyfile(source / CONFIG_FILE, target / CONFIG_FILE)
    return target


@pytest.fixture(scope="session")
def renderer(pocket_base: str) -> ChatRenderer:
    return ChatRenderer.load(pocket_base)


@pytest.fixture(scope="session")
def renderers(renderer: ChatRenderer) -> Renderers:
    """The base's own template for every adapter."""
    return Renderers(renderer.spec, TemplateChoice(), lambda adapter: TemplateChoice(), 8)


@pytest.fixture
def registry(
    store: Store, adapter_folders: dict[str, Path], pocket_base: str, fingerprint: str
) -> Registry:
    """ada and bob in production; cyn registered without an alias."""
    registry = Registry(store)
    for name, folder in adapter_folders.items():
        version = registry.register(
            name, folder, base=pocket_base, base_fingerprint=fingerprint, lineage={}, metrics={}
        )
        if name != "cyn":
            registry.promote(name, "production", version.id, 0)
    return registry
