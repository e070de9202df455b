"""The promote stage: the gate's decision, and with a passed one a new version behind the alias."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from pipelines.config.identity import evaluation_identity
from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import (
    Checkpoint,
    EvalReport,
    GateDecision,
    ModelVersion,
    PreparedDataset,
    Score,
    TrainingRun,
)
from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError
from pipelines.eval.gate import decide
from pipelines.registry.provenance import git_commit, lineage
from pipelines.registry.registry import Registry
from pipelines.steps.inputs import Inputs
from pipelines.steps.step import BuildContext, Step
from pipelines.storage import Artifact, Store, verify

KIND = "decisions"


def promote_step(
    inputs: Inputs,
    prepared: Step[PreparedDataset],
    trained: Step[TrainingRun],
    evaluated: Step[EvalReport],
    code: Path | None = None,
) -> Step[GateDecision]:
    """The step that asks the gate and, if the best checkpoint passes, registers and promotes it.

    A rejection is a result, not an error: it is stored with its reason, and nothing is registered.
    A decision that is found again moves nothing, so a later rollback stays in force. `code` is a
    folder whose git commit joins the version's lineage. Building raises UserError for a recipe that
    trains no adapter, for an adapter that the registry refuses, for a checkpoint or base that
    changed since it was scored, and when the alias was moved by somebody else meanwhile.
    """
    recipe = inputs.recipe

    def key(dataset: PreparedDataset, run: TrainingRun, report: EvalReport) -> str:
        literals = {"gate": recipe.gate.model_dump(), "registry": recipe.registry.model_dump()}
        return digest_of({"evals": report.ref.key, **literals})

    return Step(
        name="promote",
        noun="gate decision",
        kind=KIND,
        inputs=(prepared, trained, evaluated),
        key=key,
        build=lambda context, *nouns: _build(context, inputs, code, *nouns),
        load=load_decision,
        summary=lambda decision: _summary(recipe, decision),
        needs_ray=False,
        is_intact=lambda store, artifact: _has_effect(store, recipe, artifact),
    )


def load_decision(store: Store, artifact: Artifact) -> GateDecision:
    """The noun of a stored decision."""
    ref = store.noun_to_json(artifact.ref)
    return store.noun_from_json(GateDecision, {**artifact.metadata, "ref": ref})


def _build(
    context: BuildContext,
    inputs: Inputs,
    code: Path | None,
    dataset: PreparedDataset,
    run: TrainingRun,
    report: EvalReport,
) -> None:
    recipe, store = inputs.recipe, context.store
    recipe.check_registers()
    decision = decide(recipe.gate, report)
    decision = dataclasses.replace(decision, report=report.ref.key)
    if decision.passed:
        decision = _promote(context, inputs, code, dataset, run, report, decision)
    parents = {
        "prepared": dataset.ref.digest,
        "trained": run.ref.digest,
        "evals": report.ref.digest,
    }
    with store.create_artifact(KIND, context.key, parents) as draft:
        draft.metadata = store.noun_to_json(decision)
        del draft.metadata["ref"]


def _promote(
    context: BuildContext,
    inputs: Inputs,
    code: Path | None,
    dataset: PreparedDataset,
    run: TrainingRun,
    report: EvalReport,
    decision: GateDecision,
) -> GateDecision:
    """Register the winner and move the alias to it; returns the decision with what was moved."""
    recipe, registry = inputs.recipe, Registry(context.store)
    model, name = recipe.registry.model, recipe.registry.alias
    alias = registry.alias(model, name)
    checkpoint = next(c for c in run.checkpoints if c.ref.digest == decision.candidate)
    roles = lineage(recipe, dataset, checkpoint, report, git_commit(code))
    version = _register(context.store, inputs, dataset, checkpoint, report, roles)
    decision = dataclasses.replace(decision, version_id=version.id)
    if alias and alias.version_id == version.id:
        return dataclasses.replace(decision, alias_revision=alias.revision)
    earlier = load_decision(context.store, context.outdated) if context.outdated else None
    if alias and earlier and earlier.version_id and alias.version_id != earlier.version_id:
        # Somebody moved the alias after the earlier decision, for example back: that stays.
        return decision
    revision = alias.revision if alias else 0
    registry.promote(
        model, name, version.id, revision, reason=decision.reason, decision=context.key
    )
    incumbent = alias.version_id if alias else ""
    return dataclasses.replace(decision, incumbent=incumbent, alias_revision=revision + 1)


def _has_effect(store: Store, recipe: Recipe, artifact: Artifact) -> bool:
    """Whether the version of a passed decision, and the alias's history, still exist."""
    decision, registry = load_decision(store, artifact), Registry(store)
    if not decision.passed:
        return True
    model, alias = recipe.registry.model, recipe.registry.alias
    known = {version.id for version in registry.versions(model)}
    return decision.version_id in known and registry.alias(model, alias) is not None


def _register(
    store: Store,
    inputs: Inputs,
    dataset: PreparedDataset,
    checkpoint: Checkpoint,
    report: EvalReport,
    roles: dict[str, str],
) -> ModelVersion:
    recipe = inputs.recipe
    folder = store.local_dir(checkpoint.ref)
    verify(folder)  # the scores belong to the bytes that were evaluated
    fingerprint = inputs.fresh_base_fingerprint()
    if fingerprint != inputs.base_fingerprint:
        raise UserError(
            f"model.base={recipe.model.base}: its weights changed since the run began; nothing was "
            "promoted: restore them, or give the same command again to train on the new ones"
        )
    score = next(s for s in report.scores if s.candidate == checkpoint.ref.digest)
    return Registry(store).register(
        recipe.registry.model,
        folder / "adapter",
        base=recipe.model.base,
        base_fingerprint=fingerprint,
        lineage=roles,
        metrics=_metrics(score, report.base),
        quantization=recipe.model.quantization,
        dtype=evaluation_identity(recipe)["model"]["dtype"],
        template=dataset.template,
        engine="transformers",
    )


def _metrics(score: Score, base: Score) -> dict[str, float]:
    """The figures stored with a version; one that does not exist (no answers) is left out."""
    figures = {
        "heldout_loss": score.heldout_loss,
        "exact_match": score.exact_match,
        "base_heldout_loss": base.heldout_loss,
        "base_exact_match": base.exact_match,
    }
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _summary(recipe: Recipe, decision: GateDecision) -> str:
    if not decision.passed:
        return f"gate not passed: {decision.reason}"
    if not decision.alias_revision:
        return (
            f"gate passed: {decision.reason}; {decision.version_id} registered, but not promoted: "
            f"{recipe.registry.alias} was moved by hand before"
        )
    replaced = f" over {decision.incumbent}" if decision.incumbent else ""
    return (
        f"gate passed: {decision.reason}; {decision.version_id} promoted to "
        f"{recipe.registry.alias} (revision {decision.alias_revision}){replaced}"
    )
