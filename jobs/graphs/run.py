"""The graph of one recipe: prepare, train, evaluate and promote as steps that need each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from jobs import CODE
from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import (
    EvalReport,
    GateDecision,
    ModelVersion,
    PreparedDataset,
    TrainingRun,
)
from pipelines.core.digests import short
from pipelines.core.errors import UserError
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.steps.step import Step, fixed_step
from pipelines.storage import Store

T = TypeVar("T")


@dataclass(frozen=True)
class RecipeGraph:
    """The steps of a recipe, each with the steps before it as its inputs."""

    prepare: Step[PreparedDataset]
    train: Step[TrainingRun]
    evaluate: Step[EvalReport]
    promote: Step[GateDecision]


@dataclass(frozen=True)
class RunResult:
    """The result of each stage; `version` is None when the gate rejected the candidate."""

    prepared: PreparedDataset
    run: TrainingRun
    report: EvalReport
    decision: GateDecision
    version: ModelVersion | None
    seconds: dict[str, float]


def recipe_graph(
    inputs: Inputs,
    store: Store,
    prepared: str | None = None,
    run: str | None = None,
    report: str | None = None,
) -> RecipeGraph:
    """The steps of a recipe. `prepared`, `run` and `report` fix an artifact of the store by its id.

    Raises UserError for an id that the store does not have, or has more than once.
    """
    from pipelines.data.stage import prepare_step
    from pipelines.eval.promotion import promote_step
    from pipelines.eval.stage import evaluate_step
    from pipelines.packed.feed import RowFeed
    from pipelines.train.stage import train_step

    def check_dataset(store: Store, dataset: PreparedDataset) -> None:
        check_trainable(inputs.recipe, store, dataset)

    dataset = _fixed(prepare_step(inputs), store, prepared)
    trained = _fixed(train_step(inputs, dataset, RowFeed, check_dataset), store, run)
    scores = _fixed(evaluate_step(inputs, dataset, trained), store, report)
    return RecipeGraph(
        dataset, trained, scores, promote_step(inputs, dataset, trained, scores, CODE)
    )


def run_recipe(inputs: Inputs, runner: Runner) -> RunResult:
    """Run every step of a recipe; a rerun finds what is finished.

    Raises UserError, before anything is trained, for what could not be scored or registered later.
    """
    from jobs.bases.checks import check_evaluates
    from pipelines.registry.registry import Registry
    from pipelines.train.stage import check_startable

    recipe, store = inputs.recipe, runner.store
    recipe.check_registers()
    check_startable(recipe, store)
    graph = recipe_graph(inputs, store)
    check_evaluates(recipe)
    check_base(recipe, runner, graph)
    runner.progress.note(f"recipe {recipe.name} {short(recipe.digest)}, store {store.uri}")
    prepared = runner.run(graph.prepare)
    if not prepared.heldout.num_samples:
        raise UserError(
            f"{prepared.ref.uri}: has no held-out sample, so `run` could not score what it trains: "
            "set data.heldout_share above 0, give a source with split: heldout, or run `loraforge "
            "train` alone"
        )
    if prepared.kind == "text" and recipe.gate.metric == "exact_match":
        raise UserError(
            f"gate.metric=exact_match: dataset {prepared.ref.name} is plain text, which has no "
            "questions to answer: set gate.metric=heldout_loss"
        )
    decision = runner.run(graph.promote)
    version = Registry(store).get(decision.version_id) if decision.passed else None
    return RunResult(
        prepared,
        runner.run(graph.train),
        runner.run(graph.evaluate),
        decision,
        version,
        dict(runner.seconds),
    )


def check_base(recipe: Recipe, runner: Runner, graph: RecipeGraph) -> None:
    """Raise UserError for a base that cannot be trained, unless the run has finished already."""
    if runner.find(graph.train) is None:
        from jobs.bases.checks import check_trains, training_notes

        check_trains(recipe)
        for line in training_notes(recipe):
            runner.progress.note(line)


def check_trainable(recipe: Recipe, store: Store, dataset: PreparedDataset) -> None:
    """Raise UserError when the dataset fails its audit, or the cluster cannot hold the workers."""
    from jobs.cluster.ray import check_fits
    from pipelines.data.audit.problems import refuse

    artifact = store.read(dataset.ref.uri)
    if artifact is None:
        raise UserError(f"{dataset.ref.uri}: the dataset is gone; run `loraforge prepare` again")
    refuse(artifact, dataset, recipe.data)
    check_fits(recipe)


def _fixed(step: Step[T], store: Store, prefix: str | None) -> Step[T]:
    return fixed_step(step, store.by_id(step.kind, prefix)) if prefix else step
