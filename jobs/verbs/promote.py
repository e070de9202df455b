"""promote"""

from __future__ import annotations

import math
from pathlib import Path

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import (
    EvalReport,
    GateDecision,
    ModelVersion,
    PreparedDataset,
    Score,
    TrainingRun,
)
from pipelines.core.progress import Progress
from pipelines.eval.gate import decide
from pipelines.model.base import base_fingerprint
from pipelines.registry.provenance import git_commit, lineage
from pipelines.registry.registry import Registry
from pipelines.storage import Store

CODE = Path(__file__).parents[2]


def promote(
    recipe: Recipe,
    store: Store,
    progress: Progress,
    prepared: PreparedDataset,
    run: TrainingRun,
    report: EvalReport,
    code: Path | None = CODE,
) -> tuple[GateDecision, ModelVersion | None]:
    """Register the report's best checkpoint and move the recipe's alias to it, if the gate lets it pass.

    A loser is no error: the decision says why, the version is None and nothing is written. `code` is a folder whose git
    commit joins the lineage. Raises UserError for a whole model, for an adapter that the registry refuses, or when the alias was moved by
    somebody else meanwhile.
    """
    recipe.check_registers()
    decision = decide(recipe.gate, report)
    progress.note(f"gate {'passed' if decision.passed else 'not passed'}: {decision.reason}")
    if not decision.passed:
        return decision, None
    checkpoint = next(c for c in run.checkpoints if c.ref.digest == decision.candidate)
    score = next(s for s in report.scores if s.candidate == decision.candidate)
    registry = Registry(store)
    model, alias = recipe.registry.model, recipe.registry.alias
    before = registry.alias(model, alias)
    version = registry.register(
        model,
        store.local_dir(checkpoint.ref) / "adapter",
        base=recipe.model.base,
        base_fingerprint=base_fingerprint(recipe.model.base, recipe.model.revision),
        lineage=lineage(recipe, prepared, checkpoint, report, git_commit(code)),
        metrics=_metrics(score, report.base),
    )
    if before and before.version_id == version.id:
        progress.note(
            f"version {version.id}: already {alias} (revision {before.revision}), nothing moved"
        )
        return decision, version
    moved = registry.promote(
        model, alias, version.id, before.revision if before else 0, reason=decision.reason
    )
    was = f", was {before.version_id}" if before else ""
    progress.note(f"version {version.id}: promoted to {alias} (revision {moved.revision}{was})")
    return decision, version


def _metrics(score: Score, base: Score) -> dict[str, float]:
    """What stands beside a version; a figure that nobody has (no sample was answered) is left out."""
    figures = {
        "heldout_loss": score.heldout_loss,
        "exact_match": score.exact_match,
        "base_heldout_loss": base.heldout_loss,
        "base_exact_match": base.exact_match,
    }
    return {name: value for name, value in figures.items() if math.isfinite(value)}
