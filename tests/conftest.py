"""Fixtures that many tests share: one local Ray cluster per session, stores, and bases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.storage import Store

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster of 4 logical CPUs for every test that needs Ray."""
    from jobs.cluster.ray import ray_cluster

    with ray_cluster(num_cpus=4):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def pocket_base() -> str:
    """The base model that ships with the repository."""
    return str(ROOT / "assets" / "pocket" / "model")


@pytest.fixture(scope="session")
def real_base() -> str:
    """A real small instruct model, SmolLM2-135M-Instruct, in the folder LORAFORGE_REAL_MODEL."""
    folder = os.environ.get("LORAFORGE_REAL_MODEL", "")
    if not (Path(folder) / "config.json").is_file():
        pytest.skip("LORAFORGE_REAL_MODEL names no folder with a model")
    return folder


@pytest.fixture(scope="session")
def adapter_folders(pocket_base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters of the pocket base, ada, bob and cyn, whose weights are random: each answers
    differently.
    """
    import torch

    from pipelines.config.schema import LoraConfig, ModelConfig
    from pipelines.model.base import load_base
    from pipelines.model.lora import attach, trainable_parameters
    from pipelines.model.lora_save import save_adapter

    folders = {}
    for seed, name in enumerate(("ada", "bob", "cyn")):
        model = attach(
            load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(r=4, alpha=8), seed
        )
        generator = torch.Generator().manual_seed(seed)
        for parameter in trainable_parameters(model).values():
            parameter.data += 0.15 * torch.randn(parameter.shape, generator=generator)
        folders[name] = tmp_path_factory.mktemp(name)
        save_adapter(model, folders[name], pocket_base)
    return folders


@pytest.fixture(scope="session")
def fingerprint(pocket_base: str) -> str:
    from pipelines.sources.base_files import base_fingerprint

    return base_fingerprint(pocket_base)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs more CUDA devices than there are; torch is imported only when a test asks for
    one.
    """
    wanted = [(item, 1) for item in items if item.get_closest_marker("gpu")]
    wanted += [(item, 2) for item in items if item.get_closest_marker("gpu2")]
    if not wanted:
        return
    import torch

    for item, count in wanted:
        if torch.cuda.device_count() < count:
            item.add_marker(
                pytest.mark.skip(reason=f"needs {count} CUDA device{'s' * (count > 1)}")
            )
