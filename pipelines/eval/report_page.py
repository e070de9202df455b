"""A report for people: Markdown, and one self-contained HTML page (no script, nothing fetched)."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from pipelines.core.artifacts import Score
from pipelines.core.digests import short

_MAX_ANSWERS = 32
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
th,td{padding:.4rem .6rem;border-bottom:1px solid #dde2e8;text-align:left;vertical-align:top}
th{font-weight:600;background:#f5f7f9}td.num{font-variant-numeric:tabular-nums;white-space:nowrap}
.text{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.45 ui-monospace,monospace}
.ok{background:#e7f6ec}.no{background:#fdf0ee}.failed{color:#a3261b}.facts{color:#5a6675;font-size:13px}
.bar{background:#eef1f4;height:.7rem;min-width:9rem}.bar div{background:#2f6fbd;height:100%}
.bar.em div{background:#2e9155}
"""


def as_markdown(facts: Mapping[str, str], scores: Sequence[Score]) -> str:
    """The scores as a table and the sample answers below one another."""
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
        lines.append(
            f"| {s.label} | {loss_text(s)} | {exact_text(s)} | {s.num_samples} | {s.num_loss_tokens:,} |"
        )
    lines += [f"\n{s.label} failed: `{s.error}`" for s in scores if s.error]
    lines += ["", "## Answers, side by side", ""]
    for prompt, reference, answers in _side_by_side(scores):
        lines += [_quoted("prompt", prompt), _quoted("reference", reference)]
        lines += [_quoted(f"{s.label} {'=' if exact else '≠'}", text) for s, text, exact in answers]
        lines.append("")
    return "\n".join(lines)


def as_html(facts: Mapping[str, str], scores: Sequence[Score]) -> str:
    """The same as one page with bars. Everything that came from data is escaped."""
    title = f"Evaluation of {html.escape(facts['recipe'])}"
    worst = (
        max((s.heldout_loss for s in scores if math.isfinite(s.heldout_loss)), default=1.0) or 1.0
    )
    rows = "".join(_score_row(s, worst) for s in scores)
    labels = "".join(f"<th>{html.escape(s.label)}</th>" for s in scores)
    answers = "".join(
        f"<tr>{_cell(prompt)}{_cell(reference)}"
        + "".join(_cell(text, "ok" if exact else "no") for _, text, exact in given)
        + "</tr>\n"
        for prompt, reference, given in _side_by_side(scores)
    )
    about = " · ".join(f"{html.escape(k)} {html.escape(_brief(v))}" for k, v in facts.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        f'<h1>{title}</h1><p class="facts">{about}</p>\n'
        "<table><tr><th>model</th><th>held-out loss</th><th></th><th>exact match</th><th></th>"
        "<th>loss tokens</th></tr>\n"
        f"{rows}</table>\n<h2>Answers, side by side</h2>\n"
        f"<table><tr><th>prompt</th><th>reference</th>{labels}</tr>\n{answers}</table>\n</body></html>\n"
    )


def loss_text(score: Score) -> str:
    """The held-out loss to four places, `failed` where it is not finite."""
    return f"{score.heldout_loss:.4f}" if math.isfinite(score.heldout_loss) else "failed"


def exact_text(score: Score) -> str:
    """The share of exact answers, `-` where nothing was answered."""
    return f"{score.exact_match:.1%}" if math.isfinite(score.exact_match) else "-"


def _score_row(score: Score, worst: float) -> str:
    label = html.escape(score.label)
    if score.error:
        return f'<tr><td>{label}</td><td colspan="5" class="failed">failed: {html.escape(score.error)}</td></tr>\n'
    return (
        f'<tr><td>{label}</td><td class="num">{loss_text(score)}</td><td>{_bar(score.heldout_loss / worst, "")}</td>'
        f'<td class="num">{exact_text(score)}</td><td>{_bar(score.exact_match, "em")}</td>'
        f'<td class="num">{score.num_loss_tokens:,}</td></tr>\n'
    )


def _bar(share: float, kind: str) -> str:
    width = 100 * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    return f'<div class="bar {kind}"><div style="width:{width:.1f}%"></div></div>'


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="text {kind}">{html.escape(text)}</td>'


def _side_by_side(scores: Sequence[Score]) -> list[tuple[str, str, list[tuple[Score, str, bool]]]]:
    """(prompt, reference, each model's answer and whether it is exact); a failed model has an empty answer."""
    given = [{a.sample_id: a for a in s.answers} for s in scores]
    out = []
    for answer in scores[0].answers[:_MAX_ANSWERS]:
        each = [(s, found.get(answer.sample_id)) for s, found in zip(scores, given, strict=True)]
        cells = [(s, a.generated if a else "", bool(a and a.exact)) for s, a in each]
        out.append((answer.prompt, answer.reference, cells))
    return out


def _quoted(name: str, text: str) -> str:
    """One labelled block; indented, so that nothing in the text is read as Markdown."""
    body = text if "\n" not in text else "\n    ".join(["", *text.splitlines()])
    return f"    {name}: {body}"


def _brief(value: str) -> str:
    return short(value) if len(value) == 64 else value
