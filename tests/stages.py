"""Single stages for tests: a step run on given nouns, found or built, without a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import EvalReport, GateDecision, PreparedDataset, TrainingRun
from pipelines.core.progress import Progress
from pipelines.data.stage import prepare_step
from pipelines.eval.promotion import promote_step
from pipelines.eval.stage import evaluate_step
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.steps.step import BuildContext, Step
from pipelines.storage import Store
from pipelines.train.stage import train_step

T = TypeVar("T")
ANY: Any = None  # stands for input steps, which `run_step` never runs


def run_step(step: Step[T], store: Store, progress: Progress, *nouns: Any) -> T:
    """The step's result on these input nouns, found or built."""
    key = step.key(*nouns)
    if store.find(step.kind, key) is None:
        step.check(*nouns)
        step.build(BuildContext(store, key, progress), *nouns)
    artifact = store.find(step.kind, key)
    assert artifact is not None
    return step.load(store, artifact)


def prepare(
    recipe: Recipe, store: Store, progress: Progress, tokenize: Callable[..., Any] | None = None
) -> PreparedDataset:
    """The prepare stage; without `tokenize` Ray must be up."""
    return Runner(store, progress).run(prepare_step(Inputs(recipe), tokenize))


def train(
    recipe: Recipe,
    store: Store,
    dataset: PreparedDataset,
    open_feed: Any,
    progress: Progress,
    fit: Any = None,
) -> TrainingRun:
    """The train stage on a given dataset; without `fit` Ray must be up."""
    step = train_step(Inputs(recipe), ANY, open_feed, fit=fit)
    return run_step(step, store, progress, dataset)


def evaluate(
    recipe: Recipe, store: Store, dataset: PreparedDataset, run: TrainingRun, progress: Progress
) -> EvalReport:
    """The evaluate stage on a given dataset and run; Ray must be up."""
    return run_step(evaluate_step(Inputs(recipe), ANY, ANY), store, progress, dataset, run)


def promote(
    recipe: Recipe,
    store: Store,
    dataset: PreparedDataset,
    run: TrainingRun,
    report: EvalReport,
    code: Any = None,
) -> GateDecision:
    """The promote stage on given results."""
    from pipelines.core.progress import SILENT

    step = promote_step(Inputs(recipe), ANY, ANY, ANY, code)
    return run_step(step, store, SILENT, dataset, run, report)


def serial_tokenize(
    chunks: Any, renderer: Any, config: Any, benchmarks: Any = None
) -> Iterator[Any]:
    """The work of `ray_tokenize.tokenized` in this process, without Ray."""
    from pipelines.data.convert.decontamination import Benchmarks
    from pipelines.data.tokenize import ChunkTokenizer

    tokenizer = ChunkTokenizer(renderer, config, benchmarks or Benchmarks())
    for number, chunk in enumerate(chunks):
        yield from tokenizer.tables(number, chunk)
