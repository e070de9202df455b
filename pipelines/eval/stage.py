"""The evaluate stage: the base and every kept checkpoint scored on the frozen held-out set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.config.identity import evaluation_identity
from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import (
    Answer,
    Checkpoint,
    EvalReport,
    PreparedDataset,
    Score,
    TrainingRun,
)
from pipelines.core.digests import digest_of, short
from pipelines.core.noun_json import from_json, to_json
from pipelines.core.progress import Progress
from pipelines.steps.inputs import Inputs
from pipelines.steps.step import BuildContext, Step
from pipelines.storage import Artifact, Store

if TYPE_CHECKING:
    from pipelines.eval.heldout import HeldoutSet

KIND = "evals"


def evaluate_step(
    inputs: Inputs, prepared: Step[PreparedDataset], trained: Step[TrainingRun]
) -> Step[EvalReport]:
    """The step that scores the base and each kept checkpoint: held-out loss and greedy answers.

    A candidate that fails, or whose loss is not finite, is in the report with the reason. Building
    raises UserError when the dataset has no held-out sample.
    """

    def key(dataset: PreparedDataset, run: TrainingRun) -> str:
        literals = {"prepared": dataset.ref.key, "trained": run.ref.key}
        base = {"base": inputs.base_fingerprint}
        return digest_of(literals | base | evaluation_identity(inputs.recipe))

    return Step(
        name="evaluate",
        noun="evaluation report",
        kind=KIND,
        inputs=(prepared, trained),
        key=key,
        build=lambda context, dataset, run: _build(context, inputs, dataset, run),
        load=load_report,
        summary=_summary,
    )


def _build(
    context: BuildContext, inputs: Inputs, dataset: PreparedDataset, run: TrainingRun
) -> None:
    from pipelines.eval.heldout import load_heldout
    from pipelines.eval.report_page import as_html, as_markdown
    from pipelines.eval.scorer import BASE

    recipe, store = inputs.recipe, context.store
    heldout = load_heldout(store, dataset, recipe.eval.max_samples)
    results = _run_scorers(recipe, store, dataset, run, heldout, context.progress)
    scores = [_score(BASE, BASE, results[BASE], heldout)]
    scores += [_score(c.ref.digest, _label(c), results[_name(c)], heldout) for c in run.checkpoints]
    parents = {"prepared": dataset.ref.digest, "trained": run.ref.digest}
    parents |= {f"checkpoint.{c.step}": c.ref.digest for c in run.checkpoints}
    metadata = {
        "recipe": recipe.name,
        "base": recipe.model.base,
        "base_fingerprint": inputs.base_fingerprint,
        "heldout_digest": heldout.digest,
        "run_id": run.run_id,
        "prepared": dataset.ref.digest,
    }
    body = metadata | {"scores": [_nan_to_null(to_json(score)) for score in scores]}
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
    with context.store.create_artifact(KIND, context.key, parents=parents) as draft:
        draft.metadata |= metadata
        (draft.path / "report.json").write_text(text + "\n")
        (draft.path / "report.md").write_text(as_markdown(metadata, scores))
        (draft.path / "report.html").write_text(as_html(metadata, scores))


def load_report(store: Store, artifact: Artifact) -> EvalReport:
    """A report as it was written, answers included."""
    body = json.loads((store.local_dir(artifact.ref) / "report.json").read_text())
    scores = tuple(from_json(Score, _null_to_nan(score)) for score in body["scores"])
    return EvalReport(artifact.ref, scores, body["heldout_digest"])


def _run_scorers(
    recipe: Recipe,
    store: Store,
    dataset: PreparedDataset,
    run: TrainingRun,
    heldout: HeldoutSet,
    progress: Progress,
) -> Mapping[str, list[dict[str, Any]]]:
    """The results of every batch, by the name that the candidate has in the scorers."""
    from pipelines.eval.heldout import answer_batches, loss_batches
    from pipelines.eval.scorer import BASE, ScorerSpec, score_batches

    batches = answer_batches(heldout.prompts, recipe.eval.batch_size)
    batches += loss_batches(heldout.samples)
    checkpoints = {_name(c): c.ref for c in run.checkpoints}
    # Ray shows all GPUs to an actor that asked for none, so the device is named.
    device = None if recipe.resources.gpus_per_worker else "cpu"
    spec = ScorerSpec(
        recipe.model,
        store.uri,
        checkpoints,
        recipe.eval.max_new_tokens,
        dataset.template,
        device,
    )
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in [BASE, *checkpoints]}
    with progress.bar("evaluate", total=len(batches) * len(results)) as advance:
        for rows in score_batches(spec, batches, recipe.resources, recipe.eval.actors):
            for row in rows:
                results[row["candidate"]].append(row)
            advance(len(rows))
    return results


def _score(
    candidate: str, label: str, results: Sequence[Mapping[str, Any]], heldout: HeldoutSet
) -> Score:
    """One candidate's batch results as its score."""
    from pipelines.eval.metrics import is_exact

    losses = [r for r in results if r["kind"] == "loss" and not r["error"]]
    weight = math.fsum(
        r["weight"] for r in losses
    )  # fsum: the same whatever order the batches came back in
    loss = math.fsum(r["nll"] for r in losses) / weight if weight else math.nan
    texts = {
        i: text
        for r in results
        if r["texts"]
        for i, text in zip(r["sample_ids"], r["texts"], strict=True)
    }
    answers = tuple(
        Answer(
            p.sample_id,
            p.text,
            p.reference,
            texts[p.sample_id],
            is_exact(texts[p.sample_id], p.reference),
        )
        for p in heldout.prompts
        if p.sample_id in texts
    )
    error = next((r["error"] for r in results if r["error"]), "")
    if not error and not math.isfinite(loss):
        error = "the held-out loss is not finite"
    exact = sum(a.exact for a in answers) / len(answers) if answers else math.nan
    loss, exact = (math.nan, math.nan) if error else (loss, exact)
    num_labels = sum(r["num_labels"] for r in losses)
    return Score(candidate, label, loss, exact, len(answers), num_labels, answers, error)


def _label(checkpoint: Checkpoint) -> str:
    return f"step {checkpoint.step}"


def _name(checkpoint: Checkpoint) -> str:
    return f"step-{checkpoint.step}-{short(checkpoint.ref.digest)}"


def _summary(report: EvalReport) -> str:
    return ", ".join(
        f"{s.label} failed"
        if s.error
        else f"{s.label} loss {s.heldout_loss:.4f}"
        + (f" exact {s.exact_match:.0%}" if math.isfinite(s.exact_match) else "")
        for s in report.scores
    )


def _nan_to_null(score: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN, so the file has null in its place."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in score.items()
    }


def _null_to_nan(score: Mapping[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in score.items()}
