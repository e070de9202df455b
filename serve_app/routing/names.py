"""Resolves the model names of requests against the registry."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.core.artifacts import ModelVersion
from pipelines.core.errors import UserError
from pipelines.registry.errors import EntryError
from pipelines.registry.registry import Registry
from serve_app.engines.protocol import AdapterRef

# Wider than a registry name, since the base's name may be a Hub id.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,95}([:@][A-Za-z0-9._-]{1,32})?")

# How long the registry's answer for a name is reused; a promotion takes effect within this time.
FRESH_S = 1.0


class UnknownModelError(Exception):
    """The endpoint serves no model of this name; the message lists the names that it serves."""


@dataclass(frozen=True)
class ServedModels:
    """The models of an endpoint; plain data, since Serve sends it to the ingress by pickle.

    `names` are registry models; empty means every model trained on the base. `alias` is followed
    where a request names no version. `merged` maps a model to the version id that is merged into a
    copy of the base.
    """

    base_name: str
    base_fingerprint: str
    names: tuple[str, ...] = ()
    alias: str = "production"
    merged: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """The deployment and adapter of a request.

    `merged` names the merged deployment, None for the base's. `answers_as` is the immutable id that
    the answer carries.
    """

    answers_as: str
    adapter: AdapterRef | None = None
    merged: str | None = None


class Router:
    """Resolves model names against the registry."""

    def __init__(
        self, registry: Registry, served: ServedModels, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry, self._served, self._clock = registry, served, clock
        # Each with the time at which it was read.
        self._versions: dict[str, tuple[float, ModelVersion]] = {}
        self._names: tuple[float, dict[str, str]] = (float("-inf"), {})

    def resolve(self, model: str) -> Route:
        """The route of a model name. Raises UnknownModelError before anything is loaded."""
        served = self._served
        if model in ("base", served.base_name):
            return Route(served.base_name)
        if model.endswith("-merged") and model.removesuffix("-merged") in served.merged:
            return Route(model, merged=model.removesuffix("-merged"))
        if not _NAME.fullmatch(model):
            raise self._unknown(model)
        try:
            version = self._version(model)
        except UserError as error:
            raise self._unknown(model) from error
        if not self._serves(version):
            raise self._unknown(model)
        return Route(version.id, AdapterRef(version.digest, version.id))

    def names(self) -> dict[str, str]:
        """Every name that a request may use, with the immutable id or base behind it now."""
        if self._clock() - self._names[0] > FRESH_S:
            self._names = (self._clock(), self._read_names())
        return dict(self._names[1])

    def _read_names(self) -> dict[str, str]:
        names = {self._served.base_name: self._served.base_name}
        for name in self._served.names or self._registry.models():
            # A damaged alias or version of one model must not hide the others.
            with contextlib.suppress(EntryError):
                alias = self._registry.alias(name, self._served.alias)
                version = self._registry.get(alias.version_id) if alias else None
                if version and self._serves(version):
                    names[name] = version.id
        merged = self._served.merged.items()
        return names | {f"{name}-merged": version_id for name, version_id in merged}

    def _version(self, model: str) -> ModelVersion:
        read_at, version = self._versions.get(model, (float("-inf"), None))
        if version is None or self._clock() - read_at > FRESH_S:
            name = model if ":" in model or "@" in model else f"{model}:{self._served.alias}"
            version = self._registry.get(name)
            self._versions[model] = (self._clock(), version)
        return version

    def _serves(self, version: ModelVersion) -> bool:
        listed = not self._served.names or version.name in self._served.names
        return listed and version.base_fingerprint == self._served.base_fingerprint

    def _unknown(self, model: str) -> UnknownModelError:
        names = ", ".join(self.names())
        return UnknownModelError(f"the model {model[:100]!r} does not exist; there are {names}")
