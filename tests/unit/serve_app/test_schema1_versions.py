"""Versions that were registered under schema 1 are offered by the endpoint and answer."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.schema import ModelConfig, ServeConfig
from pipelines.core.artifacts import TemplateChoice
from pipelines.model.base import load_base
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from serve_app.engines.protocol import AdapterRef, GenerationRequest
from serve_app.engines.transformers.engine import TransformersEngine
from serve_app.engines.transformers.renderers import Renderers
from serve_app.routing.names import Router, ServedModels

SCHEMA_1 = Path(__file__).resolve().parents[2] / "fixtures" / "store_schema1"
MESSAGES = [{"role": "user", "content": "Add 3 and 2."}]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A copy of the registry that the version before schema 2 wrote."""
    shutil.copytree(SCHEMA_1, tmp_path / "old")
    return Registry(Store(tmp_path / "old"))


def test_a_version_of_schema_1_is_routed_and_answers_with_its_own_weights(
    registry: Registry, pocket_base: str, fingerprint: str, renderer: ChatRenderer
) -> None:
    router = Router(registry, ServedModels("pocket", fingerprint))
    first, second = registry.versions("toy")
    assert router.names() == {"pocket": "pocket", "toy": first.id}
    model = load_base(ModelConfig(base=pocket_base, dtype="fp32"), "cpu")
    renderers = Renderers(
        renderer.spec,
        TemplateChoice(),
        lambda adapter: registry.template(registry.get(adapter.version_id)),
        capacity=2,
    )
    engine = TransformersEngine(
        model, renderers, ServeConfig(), lambda a: registry.adapter_dir(registry.get(a.version_id))
    )

    async def answer(adapter: AdapterRef | None) -> str:
        request = GenerationRequest(MESSAGES, adapter, max_tokens=12, temperature=0.0)
        return "".join([delta.text async for delta in engine.generate(request, stream=False)])

    try:
        adapters = [None, *(router.resolve(name).adapter for name in ("toy", second.id))]
        texts = [asyncio.run(answer(adapter)) for adapter in adapters]
    finally:
        engine.close()
    assert len(set(texts)) == 3 and all(texts)
