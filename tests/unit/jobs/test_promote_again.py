"""Decisions that are found, outdated or overruled: what a human moved stays moved."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import (
    PreparedDataset,
)
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from tests.candidates import promote_step_result, scored, trained
from tests.stages import promote


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("folder", ["models", "aliases"])
def test_a_decision_whose_version_or_alias_is_gone_is_made_again(
    recipe: Recipe, store: Store, prepared: PreparedDataset, folder: str
) -> None:
    run = trained(store, 10)
    report = scored(run, 1.0)
    first = promote_step_result(recipe, store, prepared, run, report)
    shutil.rmtree(Path(store.uri) / folder)
    again = promote_step_result(recipe, store, prepared, run, report)
    assert again.version_id == first.version_id
    assert Registry(store).get("sailor").id == first.version_id


def test_a_rebuilt_decision_does_not_undo_a_rollback(
    recipe: Recipe, store: Store, prepared: PreparedDataset
) -> None:
    """An input was built again, so the decision is outdated; the alias was moved by hand since."""
    old, new = trained(store, 10), trained(store, 20)
    first = promote_step_result(recipe, store, prepared, old, scored(old, 1.0))
    report = scored(new, 0.9)
    promote_step_result(recipe, store, prepared, new, report)
    Registry(store).rollback("sailor", "production")
    rebuilt = dataclasses.replace(report, ref=dataclasses.replace(report.ref, digest="0" * 64))
    decision = promote_step_result(recipe, store, prepared, new, rebuilt)
    assert decision.passed and decision.alias_revision == 0
    assert Registry(store).get("sailor").id == first.version_id


def test_promote_again_moves_the_alias_back_by_hand(
    recipe: Recipe, store: Store, prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.verbs import promote as verb

    old, new = trained(store, 10), trained(store, 20)
    promote(recipe, store, prepared, old, scored(old, 1.0))
    second = promote(recipe, store, prepared, new, scored(new, 0.9))
    Registry(store).rollback("sailor", "production")
    notes = Notes()
    session: Any = SimpleNamespace(recipe=recipe, store=store, progress=notes)
    verb._follow_alias(session, second.version_id, again=False)
    assert "--again" in notes.lines[-1]
    assert Registry(store).get("sailor").id != second.version_id
    verb._follow_alias(session, second.version_id, again=True)
    assert Registry(store).get("sailor").id == second.version_id
    assert Registry(store).history("sailor", "production")[-1].override
