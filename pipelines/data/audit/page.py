"""An audit as one HTML page that needs nothing else: no scripts, no fonts, no pictures from elsewhere."""

from __future__ import annotations

import html

from pipelines.chat import ChatRenderer
from pipelines.data.audit.audit import Audit, Example, Histogram, facts_of, glyphs, spans

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}
td,th{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}th{font-weight:600}
.ok{color:#1a7f37}.bad{color:#b42318;font-weight:600}figure{margin:0 1rem 1rem 0;display:inline-block}
figcaption{font-size:.85rem;color:#57606a;max-width:20rem}svg text{font-size:11px;fill:#57606a}pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:26rem;overflow:auto;background:#f6f8fa;padding:.8rem;border-radius:6px}
.t{background:#aceebb}.m{color:#57606a}.k{box-shadow:inset -1px 0 #0002}.k:hover{background:#ffd33d}
svg{display:block}
"""


def render(audit: Audit, renderer: ChatRenderer | None) -> str:
    """The page. Without a renderer (the base is gone) the examples show ids instead of text."""
    facts = "".join(
        f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>"
        for k, v in facts_of(audit).items()
    )
    problems = "".join(f'<li class="bad">{html.escape(text)}</li>' for text in audit.problems)
    verdict = f"<ul>{problems}</ul>" if problems else '<p class="ok">Nothing wrong was found.</p>'
    lost = "".join(
        f"<tr><td>{kind.count:,}</td><td>{html.escape(kind.fate)}</td><td>{html.escape(kind.reason)}</td>"
        f"<td>{html.escape(kind.first)}</td></tr>"
        for kind in audit.lost
    )
    header = "<tr><th>rows</th><th>fate</th><th>reason</th><th>first</th></tr>"
    table = f"<table>{header}{lost}</table>" if lost else "<p>None.</p>"
    examples = "".join(_example(example, renderer) for example in audit.examples)
    title = f"dataset {html.escape(audit.prepared.ref.name)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>What the loss sees: {title}</h1>{verdict}<table>{facts}</table>"
        f"<h2>Distributions (training split)</h2>{''.join(map(_figure, audit.histograms))}"
        f'<h2>Examples</h2><p><span class="t">trained</span> <span class="m">masked</span>; '
        f"a thin line ends each token; hover for its id and weight.</p>{examples}<h2>Rows that are not in it as they were</h2>{table}"
        "</html>\n"
    )


def _figure(histogram: Histogram) -> str:
    """Bars over an axis with ticks; the number beside the upper line is that of the highest bar."""
    width, height, left, over = 260, 110, 34, 8
    top = max(histogram.counts) or 1
    step = width / len(histogram.counts)
    drawn = [
        (
            f'<path d="M{left} {over}h{width}M{left} {over + height}h{width}" stroke="#d0d7de" fill="none"/>'
            f'<text x="{left - 4}" y="{over + 4}" text-anchor="end">{top:,}</text>'
            f'<text x="{left - 4}" y="{over + height}" text-anchor="end">0</text>'
        )
    ]
    for i, count in enumerate(histogram.counts):
        size = (
            max(1.0, height * count / top) if count else 0.0
        )  # a single one among thousands is to be seen
        low, high = (histogram.label(edge) for edge in histogram.edges[i : i + 2])
        drawn.append(
            f'<rect x="{left + i * step:.1f}" y="{over + height - size:.1f}" width="{step - 1:.1f}" height="{size:.1f}" '
            f'fill="#4c8bf5"><title>{low} to {high}: {count:,}</title></rect>'
        )
    for i, anchor in (
        (0, "start"),
        (len(histogram.counts) // 2, "middle"),
        (len(histogram.counts), "end"),
    ):
        x, label = left + i * step, histogram.label(histogram.edges[i])
        drawn.append(
            f'<text x="{x:.1f}" y="{over + height + 14}" text-anchor="{anchor}">{label}</text>'
        )
    unit = " tokens" if histogram.unit == "tokens" else ""
    name = html.escape(histogram.name)
    return (
        f'<figure><svg width="{left + width + 2}" height="{over + height + 18}" role="img" aria-label="{name}">{"".join(drawn)}</svg>'
        f"<figcaption>{name}; median {histogram.label(histogram.median)}{unit}</figcaption></figure>"
    )


def _example(example: Example, renderer: ChatRenderer | None) -> str:
    ids, weights = example.input_ids.tolist(), example.loss_weights
    pieces = []
    for first, last, trained in spans(weights):
        part = (
            glyphs(ids[first:last], renderer)
            if renderer
            else [([token], f"{token} ") for token in ids[first:last]]
        )
        at, tokens = first, []
        for group, text in part:
            title = f"{', '.join(map(str, group))}, weight {weights[at]:g}"
            tokens.append(f'<span class="k" title="{title}">{html.escape(text)}</span>')
            at += len(group)
        pieces.append(f'<span class="{"t" if trained else "m"}">{"".join(tokens)}</span>')
    share = float((weights > 0).mean())
    return f"<p>{html.escape(example.sample_id)}, {len(ids):,} tokens, {share:.0%} trained</p><pre>{''.join(pieces)}</pre>"
