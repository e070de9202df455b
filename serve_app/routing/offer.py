"""What an endpoint offers and where it listens, settled before anything starts."""

from __future__ import annotations

import socket

from pipelines.config.recipe import Recipe
from pipelines.config.schema import ServeConfig
from pipelines.core.errors import UserError
from pipelines.registry.registry import Registry
from pipelines.sources.base_files import base_fingerprint
from pipelines.storage import Store
from serve_app.routing.names import ServedModels


def served_models(
    recipe: Recipe, store: Store, fingerprint: str | None = None
) -> ServedModels:
    """What the recipe's endpoint offers. Raises UserError for another engine, an unknown name or one on another base."""
    if recipe.serve.engine == "vllm":
        raise UserError(
            "serve.engine=vllm: this version serves with transformers; give a vLLM of your own a version's folder, "
            f"{store.uri}/models/DIGEST12/adapter, or set serve.engine=transformers"
        )
    registry = Registry(store)
    fingerprint = fingerprint or base_fingerprint(recipe.model.base, recipe.model.revision)
    merged = {}
    for name in dict.fromkeys([*recipe.serve.models, *recipe.serve.merged]):
        version = registry.get(f"{name}:{recipe.registry.alias}")
        if version.base_fingerprint != fingerprint:
            raise UserError(
                f"serve: {version.id} was trained on another base than model.base={recipe.model.base}"
            )
        if name in recipe.serve.merged:
            merged[name] = version.id
    base_name = recipe.serve.base_name or recipe.model.base.rstrip("/").rsplit("/", 1)[-1]
    return ServedModels(
        base_name, fingerprint, tuple(recipe.serve.models), recipe.registry.alias, merged
    )


def app_name(recipe: Recipe) -> str:
    """The Serve application of a recipe: the same recipe replaces its own endpoint, another one stands beside it."""
    return f"loraforge-{recipe.name}"


def choose_port(config: ServeConfig) -> int:
    """`serve.port`, or a free one for 0. Raises UserError when it is in use or the host is not this machine's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
            probe.listen()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"serve.host={config.host}, serve.port={config.port}: cannot listen there ({reason}); "
                "set serve.port=0 for any free port"
            ) from error
        return probe.getsockname()[1]
