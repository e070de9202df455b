"""The Serve replica: one process with a model and its engine."""

from collections.abc import AsyncIterator
from pathlib import Path

from pipelines.config.schema import ModelConfig, ServeConfig
from pipelines.core.artifacts import TemplateChoice
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from serve_app.engines.protocol import Delta, GenerationRequest


class EngineReplica:
    """Serves the base, or a copy of it with the adapter of `version_id` merged in.

    `template` renders requests to the base; those to a version are rendered by its own template.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: ServeConfig,
        store_uri: str,
        cpus: float,
        version_id: str | None,
        template: TemplateChoice,
    ):
        import torch

        from pipelines.chat.tokenizer_spec import load_spec
        from pipelines.model.base import load_base
        from pipelines.model.merge import merge_adapter
        from serve_app.engines.transformers.engine import TransformersEngine
        from serve_app.engines.transformers.renderers import Renderers

        if not torch.cuda.is_available():
            torch.set_num_threads(max(1, int(cpus)))
        registry = Registry(Store(store_uri))

        def fetch(name: str) -> Path:
            return registry.adapter_dir(registry.get(name))

        loaded = merge_adapter(model, fetch(version_id)) if version_id else load_base(model)
        renderers = Renderers(
            load_spec(model.base, model.revision),
            registry.template(registry.get(version_id)) if version_id else template,
            lambda adapter: registry.template(registry.get(adapter.version_id)),
            config.max_adapters,
        )
        self._engine = TransformersEngine(
            loaded, renderers, config, lambda adapter: fetch(adapter.version_id)
        )

    async def answer(self, request: GenerationRequest) -> Delta:
        """The complete answer as one delta."""
        async for delta in self._engine.generate(request, stream=False):
            return delta
        raise AssertionError("the engine ended without an answer")

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """The answer's deltas as they are generated."""
        async for delta in self._engine.generate(request, stream=True):
            yield delta

    async def stats(self) -> dict[str, int]:
        """The engine's counters."""
        return self._engine.stats()

    def check_health(self) -> None:
        """Serve calls this regularly and restarts the replica when it raises."""
        if not self._engine.alive:
            raise RuntimeError("the engine's thread has died")
