"""The dataset audit as one HTML page: figures, distributions, examples with their mask, rejects."""

from __future__ import annotations

from pipelines.chat import ChatRenderer
from pipelines.data.audit.audit import Audit, Histogram
from pipelines.data.audit.summary import summary_of
from pipelines.data.audit.token_text import glyphs, loss_runs
from pipelines.data.audit.visible_text import visible
from pipelines.packed.reader import PackedSample
from pipelines.report.charts import histogram_chart
from pipelines.report.page import (
    Markup,
    cell,
    charts,
    element,
    facts,
    figure,
    join,
    page,
    section,
    table,
)

_STYLE = Markup(
    "<style>.loss{background:var(--good-back)}.context{color:var(--soft)}"
    ".token{box-shadow:inset -1px 0 var(--line)}.token:hover{outline:2px solid var(--chart-text)}"
    "</style>"
)


def render(audit: Audit, renderer: ChatRenderer | None) -> str:
    """The page. Without a renderer (the base is gone), examples show token ids instead of text."""
    problems = [element("li", text, class_="bad") for text in audit.problems]
    verdict = (
        element("ul", *problems)
        if problems
        else element("p", "No threshold is crossed.", class_="good")
    )
    legend = element(
        "p",
        element("span", "Tokens in the loss", class_="loss"),
        " and ",
        element("span", "tokens that are only context", class_="context"),
        ". A thin line ends each token; hover over a token for its id and weight.",
    )
    rejects = [
        (cell(f"{kind.count:,}", "number"), kind.fate, visible(kind.reason), kind.first)
        for kind in audit.rejects
    ]
    return page(
        f"Audit of dataset {audit.prepared.ref.name}",
        _STYLE,
        verdict,
        element("ul", *(element("li", note) for note in audit.notes)) if audit.notes else "",
        facts(summary_of(audit)),
        section("Distributions of the training split", charts(*map(_chart, audit.histograms))),
        section("Examples", legend, *(_example(audit, each, renderer) for each in audit.examples)),
        section(
            "Rejects",
            table(("rows", "fate", "reason", "first"), rejects)
            if rejects
            else element("p", "None."),
        ),
    )


def _chart(histogram: Histogram) -> Markup:
    is_length = histogram.unit == "tokens"
    svg = histogram_chart(
        histogram.edges,
        histogram.counts,
        histogram.name,
        "tokens" if is_length else "share",
        "count",
        histogram.label,
    )
    unit = " tokens" if is_length else ""
    return figure(svg, f"median {histogram.label(histogram.median)}{unit}")


def _example(audit: Audit, example: PackedSample, renderer: ChatRenderer | None) -> Markup:
    """A sample's text with the loss tokens marked; a token's tooltip has its id and weight."""
    ids, weights = example.input_ids.tolist(), example.loss_weights
    runs = []
    for first, end, in_loss in loss_runs(weights):
        groups = (
            glyphs(ids[first:end], renderer)
            if renderer
            else [([token], f"{token} ") for token in ids[first:end]]
        )
        position, tokens = first, []
        for group, text in groups:
            tooltip = f"{', '.join(map(str, group))}, weight {weights[position]:g}"
            tokens.append(element("span", visible(text), class_="token", title=tooltip))
            position += len(group)
        runs.append(element("span", join(tokens), class_="loss" if in_loss else "context"))
    return join([element("p", audit.heading(example)), element("pre", join(runs))])
