"""An evaluation report for people to read: as Markdown and as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipelines.core.artifacts import Score
from pipelines.core.digests import short
from pipelines.report import page
from pipelines.report.charts import bar_chart

_MAX_ANSWERS = 32


def as_markdown(facts: Mapping[str, str], scores: Sequence[Score]) -> str:
    """The scores as a table, then each prompt with its reference and all models' answers."""
    lines = [
        f"# Evaluation of {facts['recipe']}",
        "",
        *(f"- {name}: `{value}`" for name, value in facts.items()),
        "",
    ]
    lines += [
        "| model | held-out loss | exact match | answers | loss tokens |",
        "|---|---:|---:|---:|---:|",
    ]
    for s in scores:
        figures = f"{loss_text(s)} | {exact_text(s)} | {s.num_samples} | {s.num_loss_tokens:,}"
        lines.append(f"| {s.label} | {figures} |")
    lines += [f"\n{s.label} failed: `{s.error}`" for s in scores if s.error]
    lines += ["", "## Answers, side by side", ""]
    for prompt, reference, answers in _side_by_side(scores):
        lines += [_quoted("prompt", prompt), _quoted("reference", reference)]
        lines += [_quoted(f"{s.label} {'=' if exact else '≠'}", text) for s, text, exact in answers]
        lines.append("")
    return "\n".join(lines)


def as_html(facts: Mapping[str, str], scores: Sequence[Score]) -> str:
    """The report as one page with charts of the losses and of the shares of exact answers."""
    about = {name.replace("_", " "): _brief(value) for name, value in facts.items()}
    return page.page(
        f"Evaluation of {facts['recipe']}",
        page.facts(about),
        page.section("Scores", _charts(scores), _scores_table(scores)),
        page.section("Answers, side by side", _answers_table(scores)),
    )


def loss_text(score: Score) -> str:
    """The held-out loss with four decimal places; `failed` if it is not finite."""
    return f"{score.heldout_loss:.4f}" if math.isfinite(score.heldout_loss) else "failed"


def exact_text(score: Score) -> str:
    """The share of exact answers in percent; `-` if no prompt was answered."""
    return f"{score.exact_match:.1%}" if math.isfinite(score.exact_match) else "-"


def _charts(scores: Sequence[Score]) -> page.Markup:
    """Bars of both figures for every model that has them; the best model's bar is green."""
    losses = {s.label: s.heldout_loss for s in scores if math.isfinite(s.heldout_loss)}
    shares = {s.label: s.exact_match for s in scores if math.isfinite(s.exact_match)}
    figures = []
    if losses:
        best = min(losses, key=lambda label: losses[label])
        svg = bar_chart(
            losses, "held-out loss (lower is better)", "nats per label token", "{:.4f}".format, best
        )
        figures.append(page.figure(svg))
    if shares:
        best = max(shares, key=lambda label: shares[label])
        svg = bar_chart(
            {label: 100 * share for label, share in shares.items()},
            "exact answers (higher is better)",
            "% of the answers",
            "{:.1f} %".format,
            best,
            x_max=100.0,
        )
        figures.append(page.figure(svg))
    return page.charts(*figures)


def _scores_table(scores: Sequence[Score]) -> page.Markup:
    rows = [
        (
            page.cell(score.label, "label"),
            page.cell(loss_text(score), "number"),
            page.cell(exact_text(score), "number"),
            page.cell(f"{score.num_samples:,}", "number"),
            page.cell(f"{score.num_loss_tokens:,}", "number"),
            page.cell(score.error, "bad"),
        )
        for score in scores
    ]
    header = ["model", "held-out loss", "exact match", "answers", "loss tokens", "error"]
    if not any(score.error for score in scores):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return page.table(header, rows)


def _answers_table(scores: Sequence[Score]) -> page.Markup:
    header = ["prompt", "reference", *(s.label for s in scores if not s.error)]
    rows = []
    for prompt, reference, answers in _side_by_side(scores):
        rows.append([page.cell(prompt, "text"), page.cell(reference, "text")])
        rows[-1] += [
            page.cell(f"{'✓' if exact else '✗'} {text}", f"text {'exact' if exact else 'differs'}")
            for score, text, exact in answers
            if not score.error
        ]
    return page.table(header, rows)


def _side_by_side(scores: Sequence[Score]) -> list[tuple[str, str, list[tuple[Score, str, bool]]]]:
    """The first prompts as (prompt, reference, answers).

    `answers` has (score, text, is exact) for every model; the text of a failed model is empty.
    """
    by_id = [{answer.sample_id: answer for answer in score.answers} for score in scores]
    rows = []
    for first in scores[0].answers[:_MAX_ANSWERS]:
        answers = []
        for score, own in zip(scores, by_id, strict=True):
            answer = own.get(first.sample_id)
            answers.append(
                (score, answer.generated if answer else "", bool(answer and answer.exact))
            )
        rows.append((first.prompt, first.reference, answers))
    return rows


def _quoted(name: str, text: str) -> str:
    """A labelled block. Its indent makes Markdown show the text as it is."""
    body = text if "\n" not in text else "\n    ".join(["", *text.splitlines()])
    return f"    {name}: {body}"


def _brief(value: str) -> str:
    return short(value) if len(value) == 64 else value
