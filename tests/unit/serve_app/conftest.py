"""Three adapters of the pocket base whose B is random, so that each answers differently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


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
