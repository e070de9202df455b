"""The HTML shell of all pages: a single file without scripts that fetches nothing.

Every function returns `Markup`. Any other text given to a function is escaped, so text from data or
from a model cannot become HTML. Pages follow the reader's dark mode and fit a screen of 400 pixels.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from pipelines.report.charts import COLOURS

_STYLE = """
:root{color-scheme:light dark;--text:#1c2430;--soft:#57606a;--line:#d8dee4;
--back:#fff;--panel:#f6f8fa;--good:#1a7f37;--bad:#b42318;--good-back:#d8f3df;--bad-back:#fbe7e4;
%(light)s}
@media (prefers-color-scheme:dark){:root{--text:#e6edf3;--soft:#9aa5b1;--line:#30363d;
--back:#0d1117;--panel:#161b22;--good:#56d364;--bad:#ff8a80;--good-back:#12381f;--bad-back:#452220;
%(dark)s}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:1.5rem auto;padding:0 1rem;
color:var(--text);background:var(--back)}
h1{font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2rem}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}
table{border-collapse:collapse;max-width:100%%}
th,td{padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top;overflow-wrap:break-word}
th{font-weight:600}thead th{color:var(--soft);white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.label{white-space:nowrap}
.text{white-space:pre-wrap;overflow-wrap:anywhere;min-width:8rem;
font:13px/1.45 ui-monospace,monospace}
td.text{padding:.35rem .5rem;border-left:2px solid var(--back)}
.exact{background:var(--good-back)}.differs{background:var(--bad-back)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:26rem;overflow:auto;padding:.8rem;
background:var(--panel);border-radius:6px;font:13px/1.5 ui-monospace,monospace}
.scroll{overflow-x:auto}
.charts{display:flex;flex-wrap:wrap;gap:1rem 2rem;margin:1.5rem 0}
figure{margin:0;flex:1 1 17rem;max-width:34rem}figcaption{color:var(--soft);font-size:.85rem}
figure svg{display:block;width:100%%;height:auto}figure svg text{font-family:inherit!important}
@media (max-width:640px){
.facts th,.facts td{display:block;border:0;padding:0}
.facts td{overflow-wrap:anywhere;padding-bottom:.5rem}
.stack,.stack tbody{display:block}.stack thead{display:none}
.stack tr{display:block;border-bottom:1px solid var(--line);padding:.4rem 0}
.stack td{display:block;border:0;text-align:left;padding:.15rem .5rem;overflow-wrap:anywhere}
.stack td:empty{display:none}
.stack td::before{content:attr(data-label) ": ";color:var(--soft);font:13px system-ui,sans-serif}
.stack td.text::before{display:block}}
"""


class Markup(str):
    """Text that is HTML already and must not be escaped again."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: str) -> Markup:
    """`<tag attributes>children</tag>`. Attributes are keywords: `class_` and `data_label`."""
    names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    opening = "".join(f' {name}="{html.escape(value)}"' for name, value in names.items())
    return Markup(f"<{tag}{opening}>{join(children)}</{tag}>")


def join(parts: Iterable[object], separator: str = "") -> Markup:
    """Parts one after another, each escaped unless it is `Markup`."""
    return Markup(
        separator.join(
            part if isinstance(part, Markup) else html.escape(str(part)) for part in parts
        )
    )


def page(title: str, *body: object) -> Markup:
    """A complete page with its title as the heading."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{stylesheet()}</style>"
    )
    content = join([element("h1", title), *body], "\n")
    return Markup(
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{content}\n</body></html>\n'
    )


def stylesheet() -> str:
    """The CSS, with the charts' colours in both modes as variables."""
    themes = {
        theme: "".join(f"--{name}:{colours[i]};" for name, colours in COLOURS.items())
        for i, theme in enumerate(("light", "dark"))
    }
    return _STYLE % themes


def section(heading: str, *body: object) -> Markup:
    """A part of a page under its heading."""
    return element("section", element("h2", heading), *body)


def facts(values: Mapping[str, object]) -> Markup:
    """Names and values as a table of two columns; on a narrow screen one below the other."""
    rows = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in values.items()
    ]
    return element("table", *rows, class_="facts")


def cell(value: object, class_: str = "") -> Markup:
    """A table's cell with a class: `number`, `label`, `text`, `bad`, `text exact`, ..."""
    return element("td", value, class_=class_) if class_ else element("td", value)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; on a narrow screen each row becomes a block of lines `column: value`.

    A value is text or the result of `cell`. Columns of `number` cells have right-aligned headings.
    """
    lines = [[_as_cell(value) for value in row] for row in rows]
    heads = [
        element("th", name, scope="col", class_="number")
        if lines and any('class="number"' in line[i][:40] for line in lines)
        else element("th", name, scope="col")
        for i, name in enumerate(header)
    ]
    body = [
        element("tr", *(_labelled(value, name) for value, name in zip(line, header, strict=True)))
        for line in lines
    ]
    head = element("thead", element("tr", *heads))
    content = element("table", head, element("tbody", join(body, "\n")), class_="stack")
    return element("div", content, class_="scroll")


def figure(svg: str, caption: str = "") -> Markup:
    """A chart of `pipelines.report.charts` inside the page, in the page's colours and font."""
    text = [element("figcaption", caption)] if caption else []
    return element("figure", Markup(_inline(svg)), *text)


def charts(*figures: Markup) -> Markup:
    """Figures next to one another as far as the screen is wide enough."""
    return element("div", *figures, class_="charts")


def _as_cell(value: object) -> Markup:
    if isinstance(value, Markup) and value.startswith("<td"):
        return value
    return cell(value)


def _labelled(value: Markup, label: str) -> Markup:
    return Markup(f'<td data-label="{html.escape(label)}"{value.removeprefix("<td")}')


def _inline(svg: str) -> str:
    """An SVG document as an element: no prolog, no size of its own, colours from the stylesheet."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    opening, _, rest = svg.partition(">")
    svg = re.sub(r' (?:height|width|xmlns(?::xlink)?)="[^"]*"', "", opening) + ">" + rest
    for name, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{name})")
    return svg
