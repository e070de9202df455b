"""A dataset's audit in the terminal: what the loss will see, and the problems that were found."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.chat import ChatRenderer
from pipelines.config.schema import AuditConfig
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.errors import UserError
from pipelines.data.audit.audit import Audit, Histogram, audit
from pipelines.data.audit.audit_page import render
from pipelines.data.audit.summary import summary_of
from pipelines.data.audit.token_text import glyphs, loss_runs
from pipelines.data.audit.visible_text import visible
from pipelines.data.stage import KIND, load_prepared
from pipelines.packed.reader import PackedSample
from pipelines.report.terminal import sparkline
from pipelines.storage import Store


def show_audit(
    store: Store,
    dataset_id: str,
    console: Console,
    limits: AuditConfig | None = None,
    page: Path | None = None,
    num_examples: int = 3,
    show_ids: bool = False,
    num_worst: int = 0,
    allow_keys: Collection[str] = (),
) -> Audit:
    """Print the audit of a prepared dataset and, with `page`, write it as an HTML page.

    Raises UserError when the store has no dataset of that id, or the page cannot be written.
    """
    artifact = store.by_id(KIND, dataset_id)
    prepared = load_prepared(artifact)
    result = audit(
        artifact,
        prepared,
        store.local_dir(artifact.ref),
        limits or AuditConfig(),
        allow_keys,
        num_examples,
        num_worst,
    )
    renderer = _renderer(artifact.metadata.get("base"), prepared, console)
    _show(result, renderer, console, show_ids)
    if page is not None:
        try:
            page.write_text(render(result, renderer), encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"--html {page}: cannot be written ({error.strerror})") from error
        console.print(f"page: {page}")
    return result


def _renderer(
    base: dict[str, str] | None, prepared: PreparedDataset, console: Console
) -> ChatRenderer | None:
    """The renderer of the dataset's base; None when that base is gone or has changed."""
    try:
        renderer = (
            ChatRenderer.load(base["base"], base.get("revision"), prepared.template)
            if base
            else None
        )
    except UserError as error:
        console.print(f"[yellow]tokens are shown as ids: {error}[/yellow]")
        return None
    if renderer and renderer.tokenizer_digest != prepared.tokenizer_digest:
        console.print(
            "[yellow]tokens are shown as ids: the base's tokenizer has changed since[/yellow]"
        )
        return None
    return renderer


def _show(result: Audit, renderer: ChatRenderer | None, console: Console, show_ids: bool) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in summary_of(result).items():
        table.add_row(Text(name, style="bold"), str(value))
    console.print(table)
    for histogram in result.histograms:
        console.print(_line(histogram))
    for example in result.examples:
        console.print(
            _coloured(result, example, renderer, show_ids, console.color_system is not None)
        )
    if result.rejects:
        rejects = Table(
            "rows",
            "fate",
            "reason",
            "first",
            title="rejects",
            title_justify="left",
        )
        for kind in result.rejects[:12]:
            rejects.add_row(
                f"{kind.count:,}", kind.fate, Text(visible(kind.reason)), Text(kind.first)
            )
        console.print(rejects)
    for note in result.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    for problem in result.problems:
        console.print(Text(f"wrong: {problem}", style="bold red"))
    if not result.problems:
        console.print("[green]nothing wrong was found[/green]")


def _line(histogram: Histogram) -> Text:
    low, median, high = (
        histogram.label(v) for v in (histogram.edges[0], histogram.median, histogram.edges[-1])
    )
    unit = " tokens" if histogram.unit == "tokens" else ""
    return Text.assemble(
        (f"{histogram.name:26}", "bold"),
        (sparkline(histogram.counts), "blue"),
        f"  {low} to {high}{unit}, median {median}",
    )


def _coloured(
    result: Audit,
    example: PackedSample,
    renderer: ChatRenderer | None,
    show_ids: bool,
    colours: bool,
) -> Text:
    """A sample's text with the tokens in the loss on green, or in brackets without colours."""
    ids = example.input_ids.tolist()
    out = Text.assemble((f"\n{result.heading(example)}\n", "dim"))
    for first, last, in_loss in loss_runs(example.loss_weights):
        style = "black on green" if in_loss else ""
        opening, closing = ("⟦", "⟧") if in_loss and not colours else ("", "")
        out.append(opening)
        if renderer is None or show_ids:
            part = (
                glyphs(ids[first:last], renderer)
                if renderer
                else [([token], "") for token in ids[first:last]]
            )
            for group, text in part:
                out.append(visible(text), style=style)
                out.append(f"[{','.join(map(str, group))}]", style="dim cyan")
        else:
            text = renderer.decode(ids[first:last], skip_special_tokens=False)
            out.append(visible(text), style=style)
        out.append(closing)
    return out
