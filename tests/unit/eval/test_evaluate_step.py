"""The evaluate step on a running Ray: scores, failed candidates, pages, and finding a report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import EvalReport, PreparedDataset, TrainingRun
from pipelines.core.errors import UserError
from pipelines.eval.heldout import heldout_digest
from pipelines.eval.stage import load_report
from pipelines.storage import Store, verify
from tests.stages import evaluate

ANSWER = "Aye, captain."


class RecordedProgress:
    """A progress that keeps its notes and how far its last bar went."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done = self.total = 0

    def note(self, text: str) -> None:
        self.lines.append(text)

    def bar(self, name: str, total: int | None = None) -> Any:
        import contextlib

        self.total = total or 0

        def advance(count: int = 1, text: str = "") -> None:
            self.done += count

        return contextlib.nullcontext(advance)


@pytest.fixture(scope="session")
def progress() -> RecordedProgress:
    return RecordedProgress()


@pytest.fixture(scope="session")
def report(
    ray_cluster: None,
    recipe: Recipe,
    eval_store: Store,
    prepared: PreparedDataset,
    run: TrainingRun,
    progress: RecordedProgress,
) -> EvalReport:
    return evaluate(recipe, eval_store, prepared, run, progress)


def test_the_trained_candidate_answers_and_the_others_do_not(report: EvalReport) -> None:
    by_label = {s.label: s for s in report.scores}
    assert list(by_label) == ["base", "step 10", "step 20", "step 30", "step 40"]
    good, base, noise = by_label["step 20"], by_label["base"], by_label["step 30"]
    assert good.exact_match == 1.0 and base.exact_match == noise.exact_match == 0.0
    assert good.heldout_loss < 0.1 < base.heldout_loss < noise.heldout_loss
    assert good.num_samples == base.num_samples == 8
    assert good.num_loss_tokens == base.num_loss_tokens > 15 * 2
    assert {a.generated for a in good.answers} == {ANSWER} and all(a.exact for a in good.answers)
    assert [a.prompt for a in good.answers] == [a.prompt for a in base.answers]


def test_a_broken_candidate_fails_with_its_reason(report: EvalReport) -> None:
    by_label = {s.label: s for s in report.scores}
    assert "does not fit the base" in by_label["step 10"].error
    assert by_label["step 40"].error == "the held-out loss is not finite"
    for label in ("step 10", "step 40"):
        assert math.isnan(by_label[label].heldout_loss) and math.isnan(by_label[label].exact_match)


def test_progress_counts_every_batch_of_every_candidate(
    report: EvalReport, progress: RecordedProgress
) -> None:
    assert progress.done == progress.total == 5 * (3 + 1)


def test_the_artifact_names_its_parents_and_its_heldout_set(
    report: EvalReport, eval_store: Store, prepared: PreparedDataset, run: TrainingRun
) -> None:
    folder = Path(report.ref.uri)
    verify(folder)
    artifact = eval_store.read(report.ref.uri)
    assert artifact is not None
    assert report.heldout_digest == heldout_digest(eval_store, prepared)
    assert report.ref.parents["prepared"] == prepared.ref.digest
    assert report.ref.parents["checkpoint.20"] == run.checkpoints[1].ref.digest
    text = (folder / "report.json").read_text()
    body = json.loads(text, parse_constant=pytest.fail)
    assert (
        body["heldout_digest"] == report.heldout_digest
        and body["scores"][1]["heldout_loss"] is None
    )
    again = load_report(eval_store, artifact)
    assert again.scores[2] == report.scores[2] and math.isnan(again.scores[1].heldout_loss)


def test_a_second_call_finds_the_report_and_other_settings_do_not(
    report: EvalReport,
    recipe: Recipe,
    eval_store: Store,
    prepared: PreparedDataset,
    run: TrainingRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("scored again")

    monkeypatch.setattr("pipelines.eval.scorer.score_batches", refuse)
    progress = RecordedProgress()
    assert evaluate(recipe, eval_store, prepared, run, progress).ref == report.ref
    longer = recipe.model_copy(
        update={"eval": recipe.eval.model_copy(update={"max_new_tokens": 17})}
    )
    with pytest.raises(RuntimeError, match="scored again"):
        evaluate(longer, eval_store, prepared, run, progress)


def test_the_pages_have_every_score_and_fetch_nothing(report: EvalReport) -> None:
    page = (Path(report.ref.uri) / "report.html").read_text()
    assert (
        page.count('class="text exact">✓ Aye, captain.<') == 8
        and "step 40" in page
        and "does not fit the base" in page
    )
    assert "http" not in page and "<script" not in page and "src=" not in page
    markdown = (Path(report.ref.uri) / "report.md").read_text()
    assert (
        "| step 20 | 0.0" in markdown
        and "| 100.0% |" in markdown
        and report.heldout_digest in markdown
    )


def test_a_dataset_without_heldout_samples_is_a_user_error(
    recipe: Recipe, eval_store: Store, empty_heldout: PreparedDataset, run: TrainingRun
) -> None:
    with pytest.raises(UserError, match="data.heldout_share"):
        evaluate(recipe, eval_store, empty_heldout, run, RecordedProgress())
