"""Training runs with small adapters, their reports, and the promote step on them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import (
    Answer,
    ArtifactRef,
    Checkpoint,
    EvalReport,
    GateDecision,
    ModelVersion,
    PreparedDataset,
    Score,
    TrainingRun,
)
from pipelines.core.digests import digest_of
from pipelines.core.progress import SILENT
from pipelines.eval.promotion import promote_step
from pipelines.registry.registry import Registry
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.steps.step import Step
from pipelines.storage import Store

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
SOURCES = {"source:a.json": "a" * 64, "source:b.json": "b" * 64}


def trained(store: Store, *steps: int, b: float = 1.0) -> TrainingRun:
    """A run whose checkpoints hold small adapters, one for each step."""
    checkpoints = []
    for step in steps:
        with store.create_artifact("checkpoints", digest_of([step, b])) as draft:
            folder = draft.path / "adapter"
            folder.mkdir()
            a = np.full((2, 6), step, np.float32)
            tensors = {
                f"{LAYER}.lora_A.weight": a,
                f"{LAYER}.lora_B.weight": np.full((4, 2), b, np.float32),
            }
            save_file(tensors, str(folder / "adapter_model.safetensors"))
            config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
            (folder / "adapter_config.json").write_text(json.dumps(config))
        assert draft.ref is not None
        checkpoints.append(Checkpoint(draft.ref, "run", step, {}))
    return TrainingRun(checkpoints[0].ref, "run", steps[-1], tuple(checkpoints), {})


def scored(run: TrainingRun, *losses: float) -> EvalReport:
    base = Score("base", "base", 2.0, 0.0, 4, 40, (Answer("s", "Hi", "Aye", "[b]no[/b]", False),))
    scores = [
        Score(
            c.ref.digest,
            f"step {c.step}",
            loss,
            0.5,
            4,
            40,
            (Answer("s", "Hi", "Aye", "Aye", True),),
        )
        for c, loss in zip(run.checkpoints, losses, strict=True)
    ]
    key = digest_of([run.ref.key, losses])
    return EvalReport(ArtifactRef("evals", key, "e" * 64, "nowhere"), (base, *scores), "h" * 64)


def promote_step_result(
    recipe: Recipe,
    store: Store,
    dataset: PreparedDataset,
    run: TrainingRun,
    report: EvalReport,
) -> GateDecision:
    """The promote step through a runner, its inputs given."""
    nouns = (dataset, run, report)
    inputs = tuple(
        Step(noun.ref.kind, "", kind, (), lambda: "", lambda _: None, lambda *_: None, str)
        for noun, kind in zip(nouns, ("prepared", "trained", "evals"), strict=True)
    )
    runner = Runner(store, SILENT)
    for step, noun in zip(inputs, nouns, strict=True):
        result: Any = noun
        runner.give(step, result)
    return runner.run(promote_step(Inputs(recipe), *inputs))  # type: ignore[arg-type]


def promoted(store: Store, decision: GateDecision) -> ModelVersion:
    return Registry(store).get(decision.version_id)
