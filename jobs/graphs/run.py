"""`loraforge run`: every stage in turn, each finding or making its artifact; and the chain that lets one run alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal, TypeVar

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
from pipelines.core.progress import Progress
from pipelines.storage import Store

T = TypeVar("T")


@dataclass
class RunResult:
    """What each stage handed on, and the seconds that it took."""

    prepared: PreparedDataset
    run: TrainingRun
    report: EvalReport
    decision: GateDecision
    version: ModelVersion | None
    seconds: dict[str, float] = field(default_factory=dict)


def run(recipe: Recipe, store: Store, progress: Progress) -> RunResult:
    """Prepare, train, evaluate and promote; the Ray cluster must be up. A rerun finds what is finished.

    Raises UserError, before it trains, for what could not be scored or registered afterwards.
    """
    from jobs.verbs.evaluate import evaluate
    from jobs.verbs.prepare import prepare
    from jobs.verbs.promote import promote
    from jobs.verbs.train import train

    recipe.check_registers()
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    progress.note(f"recipe {recipe.name} {short(recipe.digest)}, store {store.uri}")
    prepared = clock("prepare", prepare(recipe, store, progress))
    if not prepared.heldout.num_samples:
        raise UserError(
            f"{prepared.ref.uri}: holds no held-out sample, without which `run` cannot score what it trains: set "
            "data.heldout_share above 0, give a source with split: heldout, or run `loraforge train` alone"
        )
    trained = clock("train", train(recipe, store, progress, prepared))
    report = clock("evaluate", evaluate(recipe, store, progress, prepared, trained))
    decision, version = clock(
        "promote", promote(recipe, store, progress, prepared, trained, report)
    )
    return RunResult(prepared, trained, report, decision, version, seconds)


def is_finished(recipe: Recipe, store: Store, until: Literal["prepare", "evaluate"]) -> bool:
    """Whether every artifact of the stages up to `until` is there, so that no cluster is needed."""
    from pipelines.data.stage import find_prepared
    from pipelines.train.stage import find_run

    prepared = find_prepared(recipe, store)
    if not prepared or until == "prepare":
        return bool(prepared)
    trained = find_run(recipe, store, prepared)
    return trained is not None and made_report(recipe, store, prepared, trained) is not None


def prepared_of(recipe: Recipe, store: Store, digest: str | None) -> PreparedDataset:
    """The dataset of that digest, else the finished one of the recipe. Raises UserError naming the command to run."""
    from pipelines.data.stage import KIND, find_prepared, load_prepared

    if digest:
        return load_prepared(store.by_digest(KIND, digest))
    found = find_prepared(recipe, store)
    if not found:
        raise _missing("prepare", "dataset", recipe, store)
    return found


def run_of(
    recipe: Recipe, store: Store, prepared: PreparedDataset, digest: str | None
) -> TrainingRun:
    """The training run of that digest, else the finished one of the recipe. Raises UserError as `prepared_of`."""
    from pipelines.train.stage import KIND, find_run, run_from

    if digest:
        return run_from(store.by_digest(KIND, digest))
    found = find_run(recipe, store, prepared)
    if not found:
        raise _missing("train", "training run", recipe, store)
    return found


def report_of(
    recipe: Recipe,
    store: Store,
    prepared: PreparedDataset,
    trained: TrainingRun,
    digest: str | None,
) -> EvalReport:
    """The report of that digest, else the finished one of the recipe. Raises UserError as `prepared_of`."""
    from pipelines.eval.stage import KIND, read_report

    if digest:
        return read_report(store, store.by_digest(KIND, digest).ref)
    found = made_report(recipe, store, prepared, trained)
    if not found:
        raise _missing("evaluate", "evaluation report", recipe, store)
    return found


def made_report(
    recipe: Recipe, store: Store, prepared: PreparedDataset, trained: TrainingRun
) -> EvalReport | None:
    """The finished report of a training run, or None."""
    from pipelines.eval.stage import find_report, report_key
    from pipelines.model.base import base_fingerprint

    fingerprint = base_fingerprint(recipe.model.base, recipe.model.revision)
    return find_report(store, report_key(recipe, fingerprint, prepared, trained))


def _missing(stage: str, noun: str, recipe: Recipe, store: Store) -> UserError:
    return UserError(
        f"{store.uri}: no finished {noun} of recipe {recipe.name}; run `loraforge {stage}` first, or `loraforge run`"
    )


class _Clock:
    """Called with a stage's name and its result, writes down the seconds since the call before."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def __call__(self, stage: str, result: T) -> T:
        now = time.monotonic()
        self._seconds[stage], self._last = now - self._last, now
        return result
