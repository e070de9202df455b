"""The evaluation stage: score base and every kept checkpoint on the frozen held-out set, once, and keep the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import (
    Answer,
    ArtifactRef,
    Checkpoint,
    EvalReport,
    PreparedDataset,
    Score,
    TrainingRun,
    from_json,
    to_json,
)
from pipelines.core.digests import digest_of, short
from pipelines.core.progress import Progress
from pipelines.eval.heldout import HeldoutSet, answer_batches, load_heldout, loss_batches
from pipelines.eval.metrics import is_exact
from pipelines.eval.report_page import as_html, as_markdown
from pipelines.eval.scorer import BASE, ScorerSpec, score_batches
from pipelines.model.base import base_fingerprint
from pipelines.storage import Store

KIND = "evals"


def evaluate(
    recipe: Recipe, store: Store, prepared: PreparedDataset, run: TrainingRun, progress: Progress
) -> EvalReport:
    """Held-out loss and greedy answers of the base and of each kept checkpoint, on the running Ray.

    The finished report of the same dataset, checkpoints, base and settings is found again. A candidate that fails or
    whose loss is not finite is in the report with the reason. Raises UserError when nothing is held out.
    """
    fingerprint = base_fingerprint(recipe.model.base, recipe.model.revision)
    key = report_key(recipe, fingerprint, prepared, run)
    report = find_report(store, key)
    if report:
        progress.note(f"evals {report.ref.name}: found, nothing to do")
        return report
    heldout = load_heldout(store, prepared, recipe.eval.max_samples)
    results = _run(recipe, store, run, heldout, progress)
    scores = [_score(BASE, BASE, results[BASE], heldout)]
    scores += [_score(c.ref.digest, _label(c), results[_name(c)], heldout) for c in run.checkpoints]
    parents = {"prepared": prepared.ref.digest} | {
        f"checkpoint.{c.step}": c.ref.digest for c in run.checkpoints
    }
    facts = {"recipe": recipe.name, "base": recipe.model.base, "base_fingerprint": fingerprint}
    facts |= {
        "heldout_digest": heldout.digest,
        "run_id": run.run_id,
        "prepared": prepared.ref.digest,
    }
    with store.create_artifact(KIND, key, parents=parents) as draft:
        draft.metadata |= facts
        body = facts | {"scores": [_finite(to_json(score)) for score in scores]}
        (draft.path / "report.json").write_text(
            json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )
        (draft.path / "report.md").write_text(as_markdown(facts, scores))
        (draft.path / "report.html").write_text(as_html(facts, scores))
    report = find_report(store, key)
    assert report is not None, key
    progress.note(f"evals {report.ref.name}: {_in_a_line(report)}")
    return report


def report_key(
    recipe: Recipe, fingerprint: str, prepared: PreparedDataset, run: TrainingRun
) -> str:
    """Digest of all that a report depends on."""
    return digest_of(
        {
            "prepared": prepared.ref.digest,
            "checkpoints": [c.ref.digest for c in run.checkpoints],
            "base": fingerprint,
            "dtype": recipe.model.dtype,
            "quantization": recipe.model.quantization,
            "gpu": recipe.resources.gpus_per_worker > 0,
            "eval": recipe.eval.model_dump(mode="json", exclude={"actors"}),
        }
    )


def find_report(store: Store, key: str) -> EvalReport | None:
    """The finished report of a key, or None."""
    artifact = store.find(KIND, key)
    return read_report(store, artifact.ref) if artifact else None


def read_report(store: Store, ref: ArtifactRef) -> EvalReport:
    """A report as it was written, answers included."""
    body = json.loads((store.local_dir(ref) / "report.json").read_text())
    scores = tuple(from_json(Score, _with_nan(score)) for score in body["scores"])
    return EvalReport(ref, scores, body["heldout_digest"])


def _run(
    recipe: Recipe, store: Store, run: TrainingRun, heldout: HeldoutSet, progress: Progress
) -> Mapping[str, list[dict[str, Any]]]:
    """Every candidate's batch results, by the candidate's name in the actors."""
    works = answer_batches(heldout.prompts, recipe.eval.batch_size) + loss_batches(heldout.samples)
    checkpoints = {_name(c): c.ref for c in run.checkpoints}
    spec = ScorerSpec(recipe.model, store.uri, checkpoints, recipe.eval.max_new_tokens)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in [BASE, *checkpoints]}
    with progress.bar("evaluate", total=len(works) * len(results)) as advance:
        for rows in score_batches(spec, works, recipe.resources, recipe.eval.actors):
            for row in rows:
                results[row["candidate"]].append(row)
            advance(len(rows))
    return results


def _score(
    candidate: str, label: str, results: Sequence[Mapping[str, Any]], heldout: HeldoutSet
) -> Score:
    """One candidate's batch results as its score."""
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


def _in_a_line(report: EvalReport) -> str:
    return ", ".join(
        f"{s.label} failed"
        if s.error
        else f"{s.label} loss {s.heldout_loss:.4f} exact {s.exact_match:.0%}"
        for s in report.scores
    )


def _finite(score: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: null stands for it in the file."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in score.items()
    }


def _with_nan(score: Mapping[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in score.items()}
