"""Names."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.core.artifacts import ModelVersion
from pipelines.core.errors import UserError
from pipelines.registry.registry import Registry
from serve_app.api.protocol import ApiError
from serve_app.engines.protocol import AdapterRef

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,95}([:@][A-Za-z0-9._-]{1,32})?")


FRESH_S = 1.0


@dataclass(frozen=True)
class ServedModels:
    """What an endpoint offers. `names` empty means every registry model made on the base; `merged` maps to version ids."""

    base_name: str
    base_fingerprint: str
    names: tuple[str, ...] = ()
    alias: str = "production"
    merged: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """Where a request goes: the merged deployment of that name or the base's, with this adapter; and who answers."""

    answers_as: str
    adapter: AdapterRef | None = None
    merged: str | None = None


class Router:
    """Resolves model names against the registry."""

    def __init__(
        self, registry: Registry, served: ServedModels, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry, self._served, self._clock = registry, served, clock
        self._read: dict[str, tuple[float, ModelVersion]] = {}
        self._known: tuple[float, dict[str, str]] = (float("-inf"), {})

    def resolve(self, model: str) -> Route:
        """The route of a model name. Raises ApiError 404 naming the known models, before anything is loaded."""
        served = self._served
        if model in ("base", served.base_name):
            return Route(served.base_name)
        if model.endswith("-merged") and model.removesuffix("-merged") in served.merged:
            return Route(model, merged=model.removesuffix("-merged"))
        if not _ID.fullmatch(model):
            raise self._unknown(model)
        try:
            version = self._version(model)
        except UserError as error:
            raise self._unknown(model) from error
        if not self._offered(version):
            raise self._unknown(model)
        return Route(version.id, AdapterRef(version.digest, version.id))

    def known(self) -> dict[str, str]:
        """Every name that may be asked for, and the immutable id or base behind it now."""
        if self._clock() - self._known[0] > FRESH_S:
            self._known = (self._clock(), self._read_known())
        return dict(self._known[1])

    def _read_known(self) -> dict[str, str]:
        found = {self._served.base_name: self._served.base_name}
        for name in self._served.names or self._registry.models():
            held = self._registry.alias(name, self._served.alias)
            if held is None:
                continue
            version = self._registry.get(held.version_id)
            if self._offered(version):
                found[name] = version.id
        return found | {
            f"{name}-merged": version_id for name, version_id in self._served.merged.items()
        }

    def _version(self, model: str) -> ModelVersion:
        read, version = self._read.get(model, (float("-inf"), None))
        if version is None or self._clock() - read > FRESH_S:
            name = model if ":" in model or "@" in model else f"{model}:{self._served.alias}"
            version = self._registry.get(name)
            self._read[model] = (self._clock(), version)
        return version

    def _offered(self, version: ModelVersion) -> bool:
        named = not self._served.names or version.name in self._served.names
        return named and version.base_fingerprint == self._served.base_fingerprint

    def _unknown(self, model: str) -> ApiError:
        names = ", ".join(self.known())
        return ApiError(
            404,
            f"the model {model[:100]!r} does not exist; there are {names}",
            "model_not_found",
            "model",
        )
