"""Model versions, aliases and their history: plain files in the store, moved by compare-and-swap.

    STORE/models/<digest12>/                      a version `name@digest12`: adapter files and lineage, never changed
    STORE/aliases/<model>/<alias>/00000001.json   one file a move; the highest number is where the alias stands

A move from revision n creates file n + 1, which only one writer can do. Files are only ever added and each appears
whole, so a reader needs no lock and sees either the old place or the new one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pipelines.adapter_format.folder import CONFIG_FILE, WEIGHTS_FILE, check_adapter
from pipelines.core.artifacts import Alias, AliasMove, ModelVersion, from_json, to_json
from pipelines.core.digests import digest_of, short
from pipelines.core.errors import UserError
from pipelines.storage import Artifact, Store, sha256_file, verify

_KIND = "models"
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")


class AliasMovedError(UserError):
    """Somebody else moved the alias since it was read: read it again and decide anew."""


class Registry:
    """The registry inside one store. Holds no state of its own: any number of processes may use one at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # -- versions ------------------------------------------------------------------------------------------------

    def register(
        self,
        model: str,
        adapter_dir: Path,
        *,
        base: str,
        base_fingerprint: str,
        lineage: Mapping[str, str],
        metrics: Mapping[str, float],
    ) -> ModelVersion:
        """Check an adapter and copy its files in as an immutable version; the same weights give the same version.

        The digest covers the model's name, the base's fingerprint and the adapter's bytes. Raises UserError for an
        adapter that `check_adapter` refuses.
        """
        _check_name(_MODEL, model, "model")
        if not base_fingerprint:
            raise UserError(
                f"{model}: an adapter without its base's fingerprint cannot be registered"
            )
        check_adapter(adapter_dir)
        files = {name: sha256_file(adapter_dir / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
        digest = digest_of({"name": model, "base_fingerprint": base_fingerprint, "files": files})
        found = self._store.find(_KIND, digest)
        if found is None:
            facts = {
                "name": model,
                "digest": digest,
                "base": base,
                "base_fingerprint": base_fingerprint,
            }
            facts |= {
                "metrics": dict(metrics),
                "lineage": dict(lineage),
                "created": datetime.now(UTC).isoformat(),
            }
            with self._store.create_artifact(_KIND, digest, parents=lineage) as draft:
                (draft.path / "adapter").mkdir()
                for name, sha256 in files.items():
                    shutil.copyfile(adapter_dir / name, draft.path / "adapter" / name)
                    if sha256_file(draft.path / "adapter" / name) != sha256:
                        raise UserError(
                            f"{adapter_dir / name}: changed while it was being registered"
                        )
                draft.metadata |= facts
            found = self._store.find(_KIND, digest)
        assert found is not None, digest
        return _version(found)

    def get(self, name: str) -> ModelVersion:
        """The version that `model@digest12`, `model:alias` or a bare `model` (its alias production) stands for."""
        model, at, digest = name.partition("@")
        if at:
            found = re.fullmatch("[0-9a-f]{12}", digest)
            artifact = self._store.read(self._store.folder(_KIND, digest)) if found else None
            if artifact is None or artifact.metadata["name"] != model:
                raise UserError(f"{name}: no such version; there are {self._known(model)}")
            return _version(artifact)
        model, _, alias = name.partition(":")
        held = self.alias(model, alias or "production")
        if held is None:
            raise UserError(
                f"{name}: {model} has no alias {alias or 'production'}; there are {self._known(model)}"
            )
        return self.get(held.version_id)

    def models(self) -> list[str]:
        """Names of the models that have a version."""
        return sorted({version.name for version in self._all()})

    def versions(self, model: str) -> list[ModelVersion]:
        """A model's versions, oldest first."""
        return [version for version in self._all() if version.name == model]

    def adapter_dir(self, version: ModelVersion) -> Path:
        """A local folder with the version's two PEFT files, checked against the sha256 taken when it was registered."""
        artifact = self._store.find(_KIND, version.digest)
        if artifact is None:
            raise UserError(f"{version.id}: gone from the store")
        folder = self._store.local_dir(artifact.ref)
        verify(folder)
        return folder / "adapter"

    def _all(self) -> list[ModelVersion]:
        return sorted(
            (_version(a) for a in self._store.list(_KIND)), key=lambda version: version.created
        )

    def _known(self, model: str) -> str:
        return (
            ", ".join(v.id for v in self.versions(model))
            or ", ".join(self.models())
            or "no models yet"
        )

    # -- aliases -------------------------------------------------------------------------------------------------

    def aliases(self, model: str) -> list[Alias]:
        """Where each of a model's aliases stands, by name."""
        _check_name(_MODEL, model, "model")
        held = (self.alias(model, name) for name in self._store.names(f"aliases/{model}"))
        return [alias for alias in held if alias]

    def alias(self, model: str, alias: str) -> Alias | None:
        """Where an alias stands now, or None before its first move."""
        revision = self._head(model, alias)
        return self._move(model, alias, revision).alias if revision else None

    def history(self, model: str, alias: str) -> list[AliasMove]:
        """Every move of an alias, oldest first."""
        return [self._move(model, alias, n) for n in range(1, self._head(model, alias) + 1)]

    def promote(
        self,
        model: str,
        alias: str,
        version_id: str,
        expected_revision: int,
        *,
        reason: str = "",
        action: str = "promote",
    ) -> Alias:
        """Move an alias to a version if it still stands at `expected_revision` (0: it does not exist yet).

        Exactly one of several writers with the same expectation succeeds. Raises AliasMovedError to the others.
        """
        if self.get(version_id).name != model:
            raise UserError(f"{version_id}: not a version of {model}")
        moved = Alias(model, alias, version_id, expected_revision + 1)
        move = AliasMove(moved, action, reason, datetime.now(UTC).isoformat())
        text = json.dumps(to_json(move), indent=1) + "\n"
        head = self._head(model, alias)
        uri = self._uri(model, alias, moved.revision)
        if head != expected_revision or not self._store.create(uri, text):
            now = self.alias(model, alias)
            at = f"{now.version_id}, revision {now.revision}" if now else "nothing yet"
            raise AliasMovedError(
                f"{model}:{alias}: expected revision {expected_revision}, but it stands at {at}; read it and retry"
            )
        return moved

    def rollback(self, model: str, alias: str) -> Alias:
        """Move an alias back to the version before the present one, as a new move; repeat to go further back.

        Raises UserError when there is nothing before it.
        """
        moves = self.history(model, alias)
        standing: list[str] = []
        for move in moves:
            if move.action == "rollback":
                standing.pop()
            elif standing[-1:] != [move.alias.version_id]:
                standing.append(move.alias.version_id)
        if len(standing) < 2:
            at = standing[0] if standing else "nothing"
            raise UserError(
                f"{model}:{alias}: stands at {at}, and there is no version before it to roll back to"
            )
        reason = f"back from {standing[-1]}"
        return self.promote(
            model, alias, standing[-2], len(moves), reason=reason, action="rollback"
        )

    def _head(self, model: str, alias: str) -> int:
        _check_name(_MODEL, model, "model")
        _check_name(_ALIAS, alias, "alias")
        numbers = (
            name.removesuffix(".json") for name in self._store.names(f"aliases/{model}/{alias}")
        )
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _move(self, model: str, alias: str, revision: int) -> AliasMove:
        text = self._store.read_text(self._uri(model, alias, revision))
        if text is None:
            raise UserError(
                f"{self._uri(model, alias, revision)}: missing, though later moves exist"
            )
        return from_json(AliasMove, json.loads(text))

    def _uri(self, model: str, alias: str, revision: int) -> str:
        return f"{self._store.uri}/aliases/{model}/{alias}/{revision:08d}.json"


def _version(artifact: Artifact) -> ModelVersion:
    assert short(artifact.metadata["digest"]) == short(artifact.ref.key), artifact.ref.uri
    return from_json(
        ModelVersion, {**artifact.metadata, "adapter_uri": f"{artifact.ref.uri}/adapter"}
    )


def _check_name(pattern: re.Pattern[str], name: str, what: str) -> None:
    """Names become folders, so anything that could leave the registry's own folder is refused here."""
    if not pattern.fullmatch(name):
        raise UserError(f"{name!r}: not a {what} name; it must match {pattern.pattern}")
