"""The registry: model versions and the aliases that point to them, as plain files in the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.core.artifacts import Alias, AliasMove, ModelVersion, TemplateChoice
from pipelines.core.errors import UserError
from pipelines.registry.aliases import Aliases
from pipelines.registry.errors import EntryError
from pipelines.registry.versions import Versions
from pipelines.storage import Store

DEFAULT_ALIAS = "production"


class Registry:
    """The registry inside one store. Stateless: any number of processes may use one at a time."""

    def __init__(self, store: Store) -> None:
        self._versions, self._aliases = Versions(store), Aliases(store)

    def register(
        self,
        model: str,
        adapter_dir: Path,
        *,
        base: str,
        base_fingerprint: str,
        lineage: Mapping[str, str],
        metrics: Mapping[str, float],
        template: TemplateChoice | None = None,
        **optional: Any,
    ) -> ModelVersion:
        """Check an adapter and copy its files in as an immutable version.

        `template` is the chat template that trained it, which is stored with it. `optional` are
        further fields of ModelVersion (quantization, dtype, ...). The same weights and template
        give the same version, whose first registration stays. Raises UserError for an adapter that
        `check_adapter` refuses.
        """
        version = ModelVersion(
            model, "", "", base, base_fingerprint, dict(lineage), dict(metrics), "", **optional
        )
        return self._versions.register(adapter_dir, version, template)

    def get(self, name: str) -> ModelVersion:
        """The version of `model@digest12`, `model:alias` or a bare `model` (alias production).

        Raises EntryError, listing the names that exist, when there is none, and for a damaged file.
        """
        if "@" in name:
            version = self._versions.find(name)
            if version is None:
                raise EntryError(f"{name}: no such version; there are {self._names(name)}")
            return version
        model, _, alias = name.partition(":")
        current = self.alias(model, alias or DEFAULT_ALIAS)
        if current is None:
            raise EntryError(
                f"{name}: {model} has no alias {alias or DEFAULT_ALIAS}; "
                f"there are {self._names(model)}"
            )
        return self.get(current.version_id)

    def models(self) -> list[str]:
        """Names of the models that have a version."""
        return sorted({version.name for version in self._versions.list()})

    def versions(self, model: str) -> list[ModelVersion]:
        """A model's versions, oldest first."""
        return [version for version in self._versions.list() if version.name == model]

    def adapter_dir(self, version: ModelVersion) -> Path:
        """A local folder with a version's two PEFT files, checked against their sha256."""
        return self._versions.adapter_dir(version)

    def template(self, version: ModelVersion) -> TemplateChoice:
        """The chat template and arguments that trained a version; without a text the base's own."""
        return self._versions.template(version)

    def aliases(self, model: str) -> list[Alias]:
        """Each of a model's aliases, by name."""
        return self._aliases.list(model)

    def alias(self, model: str, alias: str) -> Alias | None:
        """An alias as it is now, or None before its first move."""
        return self._aliases.get(model, alias)

    def history(self, model: str, alias: str) -> list[AliasMove]:
        """Every move of an alias, oldest first."""
        return self._aliases.history(model, alias)

    def promote(
        self,
        model: str,
        alias: str,
        version_id: str,
        expected_revision: int,
        *,
        reason: str = "",
        decision: str = "",
        override: bool = False,
    ) -> Alias:
        """Move an alias to a version if its revision is `expected_revision` (0: it does not exist).

        `decision` is the key of the GateDecision behind the move; `override` marks a move made
        against it. Exactly one of several writers with the same expectation succeeds; the others
        get AliasMovedError. Raises UserError for a version of another model.
        """
        if self.get(version_id).name != model:
            raise UserError(f"{version_id}: not a version of {model}")
        return self._aliases.move(
            model,
            alias,
            version_id,
            expected_revision,
            action="promote",
            reason=reason,
            decision=decision,
            override=override,
        )

    def rollback(self, model: str, alias: str) -> Alias:
        """Move an alias back to the version before the current one, as a new move.

        Repeated calls go further back. Raises UserError when there is no earlier version.
        """
        return self._aliases.rollback(model, alias)

    def _names(self, name: str) -> str:
        """The names to list in an error: the model's versions, else all models."""
        ids = [version.id for version in self.versions(name.partition("@")[0])]
        return ", ".join(ids or self.models()) or "no models yet"
