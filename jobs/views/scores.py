"""The scores of a report as a table."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from pipelines.core.artifacts import EvalReport
from pipelines.eval.gate import is_comparable
from pipelines.eval.report_page import exact_text, loss_text
from pipelines.report.terminal import clip


def scores_table(report: EvalReport, num_answers: int = 3) -> Table:
    """Base and candidates side by side, with a few answers of each; the best loss is bold."""
    table = Table(
        title=f"held-out results ({report.base.num_samples} answers)", title_justify="left"
    )
    for name in ("", *(score.label for score in report.scores)):
        table.add_column(name, overflow="fold")
    sound = [s.heldout_loss for s in report.scores if is_comparable(s)]
    best = min(sound, default=None)
    losses = [
        Text(loss_text(s), style="bold green" if s.heldout_loss == best else "")
        for s in report.scores
    ]
    table.add_row("loss", *losses)
    table.add_row("exact match", *(Text(exact_text(s)) for s in report.scores), end_section=True)
    for i, asked in enumerate(report.base.answers[:num_answers]):
        given = [
            next((a for a in s.answers if a.sample_id == asked.sample_id), None)
            for s in report.scores
        ]
        texts = [
            Text(clip(a.generated), style="green" if a.exact else "dim") if a else Text("")
            for a in given
        ]
        table.add_row(
            Text(clip(asked.prompt), style="cyan"), *texts, end_section=i + 1 == num_answers
        )
    for score in report.scores:
        if score.error:
            table.add_row(Text(f"{score.label} failed"), Text(clip(score.error), style="red"))
    return table
