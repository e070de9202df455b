"""Aliases: promotions and rollbacks as history, who made them, and moves that are refused."""

from __future__ import annotations

import getpass
import json
import os
import socket
from pathlib import Path

import pytest

from pipelines.core.errors import UserError
from pipelines.registry.errors import AliasMovedError
from pipelines.registry.provenance import current_actor
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from tests.small_adapters import register, write_adapter


def test_promotions_and_rollbacks_are_history_and_go_back_step_by_step(
    registry: Registry, tmp_path: Path
) -> None:
    a, b, c = (register(registry, write_adapter(tmp_path / str(i), seed=i)).id for i in range(3))
    for revision, version in enumerate((a, b, c)):
        registry.promote("bot", "production", version, revision, reason=f"move {revision}")
    assert registry.rollback("bot", "production").version_id == b
    assert registry.rollback("bot", "production").version_id == a
    with pytest.raises(UserError, match="no version before it"):
        registry.rollback("bot", "production")
    registry.promote("bot", "production", c, 5)
    assert registry.rollback("bot", "production").version_id == a
    moves = registry.history("bot", "production")
    assert [(m.alias.revision, m.action, m.alias.version_id) for m in moves] == [
        (1, "promote", a),
        (2, "promote", b),
        (3, "promote", c),
        (4, "rollback", b),
        (5, "rollback", a),
        (6, "promote", c),
        (7, "rollback", a),
    ]
    assert moves[1].reason == "move 1"
    current = registry.alias("bot", "production")
    assert current == moves[-1].alias and registry.aliases("bot") == [current]


def test_a_move_from_an_outdated_revision_loses(registry: Registry, tmp_path: Path) -> None:
    a, b = (register(registry, write_adapter(tmp_path / str(i), seed=i)).id for i in range(2))
    registry.promote("bot", "production", a, 0)
    for stale in (0, 2, 7):
        with pytest.raises(
            AliasMovedError, match=rf"expected revision {stale}, but it is at {a}, revision 1"
        ):
            registry.promote("bot", "production", b, stale)
    assert len(registry.history("bot", "production")) == 1
    assert registry.alias("bot", "staging") is None


def test_an_alias_never_points_at_another_models_or_an_unknown_version(
    registry: Registry, tmp_path: Path
) -> None:
    version = register(registry, write_adapter(tmp_path / "a"))
    with pytest.raises(UserError, match="not a version of cat"):
        registry.promote("cat", "production", version.id, 0)
    with pytest.raises(UserError, match="no such version"):
        registry.promote("bot", "production", "bot@0123456789ab", 0)
    assert registry.alias("cat", "production") is None


def test_an_object_store_works_like_a_local_one(tmp_path: Path) -> None:
    registry = Registry(Store("memory://registry-test", cache_dir=tmp_path / "cache"))
    version = register(registry, write_adapter(tmp_path / "a"))
    registry.promote("bot", "production", version.id, 0)
    with pytest.raises(AliasMovedError):
        registry.promote("bot", "production", version.id, 0)
    assert registry.get("bot") == version
    assert (registry.adapter_dir(version) / "adapter_config.json").is_file()


def test_every_move_records_its_actor_and_its_decision(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (register(registry, write_adapter(tmp_path / str(i), seed=i)).id for i in range(2))
    monkeypatch.delenv("LORAFORGE_ACTOR", raising=False)
    registry.promote("bot", "production", a, 0, decision="d" * 64)
    monkeypatch.setenv("LORAFORGE_ACTOR", "nightly")
    registry.promote("bot", "production", b, 1, reason="urgent", override=True)
    registry.rollback("bot", "production")
    moves = registry.history("bot", "production")
    person = f"{getpass.getuser()}@{socket.gethostname()}"
    assert [move.actor for move in moves] == [person, "nightly", "nightly"]
    assert [move.decision for move in moves] == ["d" * 64, "", ""]
    assert [move.override for move in moves] == [False, True, False]
    assert [move.alias.targets for move in moves] == [((a, 1.0),), ((b, 1.0),), ((a, 1.0),)]


def test_a_user_without_a_name_is_an_actor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("no such user")

    monkeypatch.delenv("LORAFORGE_ACTOR", raising=False)
    monkeypatch.setattr(getpass, "getuser", nameless)
    assert current_actor() == f"uid{os.getuid()}@{socket.gethostname()}"


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"alias": 3}', "{"])
def test_a_damaged_move_is_named_and_hides_no_other_alias(
    registry: Registry, store: Store, tmp_path: Path, content: str
) -> None:
    version = register(registry, write_adapter(tmp_path / "a"))
    other = register(registry, write_adapter(tmp_path / "b", seed=1), model="cat")
    for name in ("production", "staging"):
        registry.promote("bot", name, version.id, 0)
    registry.promote("cat", "production", other.id, 0)
    path = Path(store.uri, "aliases", "bot", "production", "00000001.json")
    assert json.loads(path.read_text())["alias"]["version_id"] == version.id
    path.write_text(content)
    Path(store.uri, "aliases", "bot", "NOT AN ALIAS").touch()
    for damaged in (
        lambda: registry.get("bot"),
        lambda: registry.alias("bot", "production"),
        lambda: registry.history("bot", "production"),
    ):
        with pytest.raises(UserError, match=rf"{path}: damaged"):
            damaged()
    assert registry.get("bot:staging") == registry.get(version.id) == version
    assert registry.get("cat") == other
