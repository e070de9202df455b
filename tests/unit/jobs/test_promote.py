"""The promote stage: promoted once, found again without effect, rejected, and rolled back."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from jobs.cli import app
from jobs.views.models import history_table, versions_table
from jobs.views.scores import scores_table
from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import (
    PreparedDataset,
)
from pipelines.core.errors import UserError
from pipelines.registry.provenance import git_commit
from pipelines.registry.registry import Registry
from pipelines.steps.inputs import Inputs
from pipelines.storage import Store
from tests.candidates import promoted, scored, trained
from tests.stages import promote

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
SOURCES = {"source:a.json": "a" * 64, "source:b.json": "b" * 64}


def drawn(table: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_winner_becomes_production_with_its_lineage(
    recipe: Recipe, store: Store, prepared: PreparedDataset, tmp_path: Path
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("c" * 40 + "\n")
    run = trained(store, 10, 20)
    report = scored(run, 1.5, 1.0)
    decision = promote(recipe, store, prepared, run, report, code=tmp_path)
    version = promoted(store, decision)
    best = run.checkpoints[1]
    assert version.lineage == {
        "checkpoint": best.ref.digest,
        "evals": "e" * 64,
        "prepared": "d" * 64,
        "prepared.source:a.json": "a" * 64,
        "prepared.source:b.json": "b" * 64,
        "recipe": recipe.digest,
        "heldout": "h" * 64,
        "git_commit": "c" * 40,
    }
    assert version.metrics["heldout_loss"] == 1.0 and version.metrics["base_heldout_loss"] == 2.0
    registry = Registry(store)
    assert registry.get("sailor:production") == version
    weights = registry.adapter_dir(version) / "adapter_model.safetensors"
    assert (
        weights.read_bytes()
        == (Path(best.ref.uri) / "adapter" / "adapter_model.safetensors").read_bytes()
    )
    assert decision.reason == (
        "step 20 beats the base: held-out loss 1.0000 against 2.0000, 50.0% lower (needs 10.0% "
        "lower)"
    )
    assert (decision.candidate, decision.report) == (best.ref.digest, report.ref.key)
    assert (decision.alias_revision, decision.incumbent) == (1, "")
    assert decision.ref is not None and decision.ref.parents["trained"] == run.ref.digest


def test_a_decision_that_is_found_again_moves_nothing(
    recipe: Recipe, store: Store, prepared: PreparedDataset
) -> None:
    run = trained(store, 10)
    first = promote(recipe, store, prepared, run, scored(run, 1.0))
    again = promote(recipe, store, prepared, run, scored(run, 1.0))
    assert again == first
    assert len(Registry(store).history("sailor", "production")) == 1


def test_a_rollback_stays_when_the_same_run_is_promoted_again(
    recipe: Recipe, store: Store, prepared: PreparedDataset
) -> None:
    old, new = trained(store, 10), trained(store, 20)
    first = promote(recipe, store, prepared, old, scored(old, 1.0))
    second = promote(recipe, store, prepared, new, scored(new, 0.9))
    assert second.incumbent == first.version_id
    Registry(store).rollback("sailor", "production")
    assert promote(recipe, store, prepared, new, scored(new, 0.9)) == second
    assert Registry(store).get("sailor").id == first.version_id


def test_the_same_adapter_scored_again_leaves_the_alias_where_it_is(
    recipe: Recipe, store: Store, prepared: PreparedDataset
) -> None:
    run = trained(store, 10)
    first = promote(recipe, store, prepared, run, scored(run, 1.0))
    again = promote(recipe, store, prepared, run, scored(run, 0.9))
    assert again.version_id == first.version_id and again.alias_revision == 1
    assert len(Registry(store).history("sailor", "production")) == 1


def test_a_checkpoint_that_changed_since_it_was_scored_is_not_promoted(
    recipe: Recipe, store: Store, prepared: PreparedDataset
) -> None:
    run = trained(store, 10)
    weights = Path(run.best.ref.uri) / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="adapter_model.safetensors"):
        promote(recipe, store, prepared, run, scored(run, 1.0))
    assert Registry(store).alias("sailor", "production") is None


def test_a_base_that_changed_since_the_run_began_promotes_nothing(
    recipe: Recipe, store: Store, prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inputs, "fresh_base_fingerprint", lambda self: "f" * 64)
    run = trained(store, 10)
    with pytest.raises(UserError, match="its weights changed since the run began"):
        promote(recipe, store, prepared, run, scored(run, 1.0))
    assert Registry(store).models() == []


def test_a_figure_that_does_not_exist_is_left_out(
    recipe: Recipe, store: Store, prepared: PreparedDataset
) -> None:
    run = trained(store, 10)
    report = scored(run, 1.0)
    unanswered = tuple(
        dataclasses.replace(score, exact_match=float("nan"), num_samples=0)
        for score in report.scores
    )
    report = dataclasses.replace(report, scores=unanswered)
    version = promoted(store, promote(recipe, store, prepared, run, report))
    assert version.metrics == {"heldout_loss": 1.0, "base_heldout_loss": 2.0}
    assert "-" in drawn(versions_table(store))


@pytest.mark.parametrize("loss", [1.9, 2.5, float("nan")])
def test_a_rejected_candidate_registers_nothing_and_raises_nothing(
    recipe: Recipe, store: Store, prepared: PreparedDataset, loss: float
) -> None:
    run = trained(store, 10)
    decision = promote(recipe, store, prepared, run, scored(run, loss))
    assert not decision.passed and decision.version_id == "" and decision.reason
    assert Registry(store).models() == [] and Registry(store).alias("sailor", "production") is None


def test_an_adapter_that_the_registry_refuses_is_not_promoted(
    recipe: Recipe, store: Store, prepared: PreparedDataset
) -> None:
    run = trained(store, 10, b=float("nan"))
    with pytest.raises(UserError, match="not finite"):
        promote(recipe, store, prepared, run, scored(run, 1.0))
    assert Registry(store).alias("sailor", "production") is None


def test_a_better_run_takes_over_and_can_be_taken_back(
    recipe: Recipe, store: Store, prepared: PreparedDataset
) -> None:
    old, new = trained(store, 10), trained(store, 20)
    first = promoted(store, promote(recipe, store, prepared, old, scored(old, 1.0)))
    second = promoted(store, promote(recipe, store, prepared, new, scored(new, 0.9)))
    assert Registry(store).get("sailor") == second
    result = CliRunner().invoke(app, ["rollback", "sailor", "--store", store.uri])
    assert result.exit_code == 0
    assert f"sailor:production rolled back to {first.id} (revision 3)" in result.output
    assert Registry(store).get("sailor") == first
    rows = drawn(versions_table(store)).splitlines()
    assert ["production" in row for row in rows if "sailor@" in row] == [True, False]
    assert "1.0000" in drawn(versions_table(store, "sailor"))
    assert "2.0000" in drawn(versions_table(store))
    assert [
        row.split("│")[2].strip()
        for row in drawn(history_table(store, "sailor")).splitlines()
        if "sailor@" in row
    ] == ["promote", "promote", "rollback"]
    with pytest.raises(UserError, match="no version before it"):
        Registry(store).rollback("sailor", "production")
    with pytest.raises(UserError, match="no such model.*there are sailor"):
        versions_table(store, "tailor")


def test_the_table_shows_figures_answers_and_failures_as_they_are(store: Store) -> None:
    run = trained(store, 10, 20)
    report = scored(run, 1.0, float("nan"))
    failed = dataclasses.replace(report.scores[2], error="out of memory")
    text = drawn(scores_table(dataclasses.replace(report, scores=(*report.scores[:2], failed))))
    assert "2.0000" in text and "1.0000" in text and "50.0%" in text
    assert "[b]no[/b]" in text and "Aye" in text
    assert "out of memory" in text


def test_the_commit_is_read_from_head_a_ref_or_packed_refs(tmp_path: Path) -> None:
    git = tmp_path / ".git"
    assert git_commit(None) is None and git_commit(tmp_path) is None
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_commit(tmp_path) is None
    (git / "packed-refs").write_text(
        f"# pack-refs\n{'1' * 40} refs/heads/other\n{'2' * 40} refs/heads/main\n"
    )
    assert git_commit(tmp_path) == "2" * 40
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text("3" * 40 + "\n")
    assert git_commit(tmp_path) == "3" * 40
