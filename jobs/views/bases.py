"""What a base can be used for, as tables for a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from jobs.bases.trial import BaseRow
from pipelines.core.errors import UserError
from pipelines.model.published import PublishedBase
from pipelines.model.support_table import COLUMNS

_STYLES = {"yes": "green", "refused": "bold red", "silent": "bold red", "broken": "bold red"}


def base_facts(base: PublishedBase) -> dict[str, str]:
    """A base's architecture, quantization, longest sample and chat template, by what they are."""
    return {
        "architecture": base.model_type,
        "published in": base.quantization or str(base.values.get("dtype") or _torch_dtype(base)),
        "experts": str(base.num_experts or "none"),
        "context": f"{base.max_tokens:,} tokens" if base.max_tokens else "not in its config.json",
        "chat template": _template(base.name),
    }


def base_table(base: PublishedBase, row: BaseRow) -> Table:
    """The facts of a base, then what it can be used for, or why not."""
    table = Table(title=f"loraforge doctor {base.name}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in base_facts(base).items():
        table.add_row(name, Text(fact))
    table.add_section()
    first_titles: dict[str, str] = {}
    for column, title in COLUMNS.items():
        cell = row.cells[column]
        text = str(cell)
        first = first_titles.setdefault(text, title)
        if cell.verdict == "refused" and first != title:
            text = f"refused: the reason of '{first}'"
        table.add_row(title, Text(text, style=_STYLES.get(cell.verdict, "")))
    if row.limit:
        table.add_row("limit of each yes", Text(row.limit))
    return table


def _torch_dtype(base: PublishedBase) -> str:
    return str(base.values.get("torch_dtype") or "not in its config.json")


def _template(name: str) -> str:
    """Whether the base has a chat template, and whether it can think."""
    from pipelines.chat.thoughts import SWITCHES
    from pipelines.chat.tokenizer_spec import load_spec

    try:
        template = load_spec(name).template
    except UserError as error:
        return str(error)
    if template is None:
        return "none: set data.chat_template"
    switches = [switch for switch in SWITCHES if switch in template]
    return f"yes, thinks with {', '.join(switches)}" if switches else "yes"
