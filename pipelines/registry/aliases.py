"""Aliases and their history: files that are only ever added, moved by compare-and-swap.

    STORE/aliases/<model>/<alias>/00000001.json    one file per move; the highest number is current

A move from revision n creates file n + 1, which only one writer can do. Each file appears with its
full content, so a reader needs no lock and sees either the old target or the new one.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

from pipelines.core.artifacts import Alias, AliasMove
from pipelines.core.errors import UserError
from pipelines.core.identifiers import ALIAS_NAME
from pipelines.core.noun_json import from_json, to_json
from pipelines.registry.errors import AliasMovedError, EntryError
from pipelines.registry.provenance import current_actor
from pipelines.registry.versions import check_model_name
from pipelines.storage import Store


class Aliases:
    """The aliases inside one store. Stateless; knows no versions."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self, model: str) -> list[Alias]:
        """Each of a model's aliases, by name."""
        check_model_name(model)
        names = self._store.names(f"aliases/{model}")
        aliases = (self.get(model, name) for name in names if re.fullmatch(ALIAS_NAME, name))
        return [alias for alias in aliases if alias]

    def get(self, model: str, alias: str) -> Alias | None:
        """The alias as it is now, or None before its first move."""
        revision = self._last_revision(model, alias)
        return self._move(model, alias, revision).alias if revision else None

    def history(self, model: str, alias: str) -> list[AliasMove]:
        """Every move of an alias, oldest first."""
        last = self._last_revision(model, alias)
        return [self._move(model, alias, revision) for revision in range(1, last + 1)]

    def move(
        self,
        model: str,
        alias: str,
        version_id: str,
        expected_revision: int,
        *,
        action: str,
        reason: str,
        decision: str = "",
        override: bool = False,
    ) -> Alias:
        """Move an alias to a version if its revision is `expected_revision` (0: it does not exist).

        Exactly one of several writers with the same expectation succeeds; the others get
        AliasMovedError. The move records `current_actor()`.
        """
        moved = Alias(model, alias, version_id, expected_revision + 1)
        created = datetime.now(UTC).isoformat()
        move = AliasMove(moved, action, reason, created, current_actor(), decision, override)
        text = json.dumps(to_json(move), indent=1) + "\n"
        last = self._last_revision(model, alias)
        uri = self._uri(model, alias, moved.revision)
        if last != expected_revision or not self._store.create_file(uri, text):
            current = self.get(model, alias)
            state = (
                f"it is at {current.version_id}, revision {current.revision}"
                if current
                else "it does not exist"
            )
            raise AliasMovedError(
                f"{model}:{alias}: expected revision {expected_revision}, but {state}; "
                "read it again and retry"
            )
        return moved

    def rollback(self, model: str, alias: str) -> Alias:
        """Move an alias back to the version before the current one, as a new move.

        Repeated calls go further back. Raises UserError when there is no earlier version.
        """
        moves = self.history(model, alias)
        versions: list[str] = []
        for move in moves:
            if move.action == "rollback":
                versions.pop()
            elif versions[-1:] != [move.alias.version_id]:
                versions.append(move.alias.version_id)
        if len(versions) < 2:
            current = f"is at {versions[0]}" if versions else "does not exist"
            raise UserError(
                f"{model}:{alias}: {current}, and there is no version before it to roll back to"
            )
        *_, earlier, current = versions
        reason = f"back from {current}"
        return self.move(model, alias, earlier, len(moves), action="rollback", reason=reason)

    def _last_revision(self, model: str, alias: str) -> int:
        check_model_name(model)
        if not re.fullmatch(ALIAS_NAME, alias):
            raise UserError(f"{alias!r}: not an alias name; it must match {ALIAS_NAME}")
        names = self._store.names(f"aliases/{model}/{alias}")
        numbers = (name.removesuffix(".json") for name in names)
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _move(self, model: str, alias: str, revision: int) -> AliasMove:
        uri = self._uri(model, alias, revision)
        text = self._store.read_text(uri)
        if text is None:
            raise EntryError(f"{uri}: missing, though later moves exist")
        try:
            return from_json(AliasMove, json.loads(text))
        except (ValueError, TypeError, AttributeError) as error:
            raise EntryError(f"{uri}: damaged ({error})") from error

    def _uri(self, model: str, alias: str, revision: int) -> str:
        return f"{self._store.uri}/aliases/{model}/{alias}/{revision:08d}.json"
