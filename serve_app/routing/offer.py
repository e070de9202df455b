"""The models, name and port of a recipe's endpoint, checked before anything starts."""

from __future__ import annotations

import socket

from pipelines.config.recipe import Recipe
from pipelines.config.schema import ServeConfig
from pipelines.core.errors import UserError
from pipelines.registry.registry import Registry
from pipelines.sources.base_files import base_fingerprint
from pipelines.storage import Store
from serve_app.routing.names import ServedModels


def served_models(recipe: Recipe, store: Store, fingerprint: str | None = None) -> ServedModels:
    """The models of the recipe's endpoint; `fingerprint` is the base's, computed when not given.

    Raises UserError for an engine that is not supported, a model that does not exist, or one that
    was trained on another base.
    """
    if recipe.serve.engine == "vllm":
        raise UserError(
            "serve.engine=vllm: this version serves with transformers; give your own vLLM a "
            f"version's folder, {store.uri}/models/DIGEST12/adapter, or set "
            "serve.engine=transformers"
        )
    registry = Registry(store)
    fingerprint = fingerprint or base_fingerprint(recipe.model.base, recipe.model.revision)
    merged = {}
    for name in dict.fromkeys([*recipe.serve.models, *recipe.serve.merged]):
        version = registry.get(f"{name}:{recipe.registry.alias}")
        if version.base_fingerprint != fingerprint:
            raise UserError(
                f"serve: {version.id} was trained on another base than "
                f"model.base={recipe.model.base}"
            )
        if name in recipe.serve.merged:
            merged[name] = version.id
    base_name = recipe.serve.base_name or recipe.model.base.rstrip("/").rsplit("/", 1)[-1]
    return ServedModels(
        base_name, fingerprint, tuple(recipe.serve.models), recipe.registry.alias, merged
    )


def app_name(recipe: Recipe) -> str:
    """The name of a recipe's Serve application, which a recipe of the same name replaces."""
    return f"loraforge-{recipe.name}"


def choose_port(config: ServeConfig) -> int:
    """`serve.port`, or a free port for 0.

    Raises UserError when the port is in use or the host is not an address of this machine.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
            probe.listen()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"serve.host={config.host}, serve.port={config.port}: cannot listen there "
                f"({reason}); set serve.port=0 for any free port"
            ) from error
        return probe.getsockname()[1]
