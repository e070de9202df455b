"""Three adapters of the pocket base whose B is random, so that each answers differently; a registry that holds them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.chat import ChatRenderer
from pipelines.model.base import base_fingerprint
from pipelines.registry import Registry
from pipelines.storage import Store


@pytest.fixture(scope="session")
def adapter_folders(pocket_base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from pipelines.model.base import load_base
    from pipelines.model.lora import attach, save_adapter, trainable
    from pipelines.sections import LoraConfig, ModelConfig

    folders = {}
    for seed, name in enumerate(("ada", "bob", "cyn")):
        model = attach(load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(r=4, alpha=8), seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in trainable(model).values():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        folders[name] = tmp_path_factory.mktemp(name)
        save_adapter(model, folders[name], pocket_base)
    return folders


@pytest.fixture(scope="session")
def misfit_folder(adapter_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter made for a base with wider projections."""
    return _rewritten(adapter_folders["ada"], tmp_path_factory.mktemp("misfit"), lambda t: torch.cat([t, t], dim=-1))


@pytest.fixture(scope="session")
def overflowing_folder(adapter_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose numbers are finite and whose products are not."""
    return _rewritten(adapter_folders["ada"], tmp_path_factory.mktemp("overflowing"), lambda t: t * 1e30)


def _rewritten(source: Path, target: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    from safetensors.torch import load_file, save_file

    from pipelines.model.lora import CONFIG_FILE, WEIGHTS_FILE

    tensors = {name: change(tensor).contiguous() for name, tensor in load_file(source / WEIGHTS_FILE).items()}
    save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
    shutil.copyfile(source / CONFIG_FILE, target / CONFIG_FILE)
    return target


@pytest.fixture(scope="session")
def renderer(pocket_base: str) -> ChatRenderer:
    return ChatRenderer.load(pocket_base)


@pytest.fixture(scope="session")
def fingerprint(pocket_base: str) -> str:
    return base_fingerprint(pocket_base)


@pytest.fixture
def registry(store: Store, adapter_folders: dict[str, Path], pocket_base: str, fingerprint: str) -> Registry:
    """ada and bob in production; cyn registered, but without an alias."""
    registry = Registry(store)
    for name, folder in adapter_folders.items():
        version = registry.register(
            name, folder, base=pocket_base, base_fingerprint=fingerprint, lineage={}, metrics={}
        )
        if name != "cyn":
            registry.promote(name, "production", version.id, 0)
    return registry
