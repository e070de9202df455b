"""The table of supported bases, measured: what each architecture can be used for, or why not.

    python -m bench.bases [--json] [NAME ...]        (no name: all, and docs/bases.md is written)

Each published configuration in bench/published_bases.yaml becomes a tiny random base with the same
layers, rotation, caps, biases and tied weights. The product loads, proves, trains, quantizes,
merges, evaluates and serves it, and every result is compared with transformers and PEFT. A base
with windows is tried twice: with samples inside its windows, and with samples that cross them.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import yaml

from bench._measure import Measure, show
from pipelines.model.published import PublishedBase
from pipelines.model.support_table import COLUMNS
from pipelines.model.vllm_claims import VLLM_VERSION

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "bases.md"
MIN_ARCHITECTURES = 70
_GENERAL = (
    (r"\d+ experts", "N experts"),
    (r"=[\d.]+\)", "=...)"),
    (r"^(it|model\.base)( \([\w-]+\))? ", "it "),
    (r"^model\.base: ", ""),
    (r"(its )?\w+Attention", "its attention"),
    (r"[\w.]+\.c_attn", "its c_attn"),
)
"""What differs between refusals for the same reason, and what the page has in its place."""

_NAME = "BASE"  # equal refusals of two bases are one reason


def main() -> int:
    """Try the bases and write the page. Returns 1 when a cell is silent or broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows of published_bases.yaml")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    published = published_rows()
    if unknown := set(given.names) - published.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    _quiet()
    rows = {}
    for name in given.names or published:
        rows[name] = row = try_row(name, published[name])
        print(json.dumps(row) if given.json else _text(row), flush=True)
    if not given.names:
        PAGE.write_text(page(rows))
    return 0 if show(measures(rows, complete=not given.names), given.json) else 1


def published_rows() -> dict[str, dict[str, Any]]:
    """The published configurations by the row's name."""
    return yaml.safe_load((ROOT / "bench" / "published_bases.yaml").read_text())


def published_base(row: Mapping[str, Any]) -> PublishedBase:
    """A row as the base that it describes, with the keys of its config.json."""
    values = {key: value for key, value in row.items() if key not in ("example", "type", "pattern")}
    if "pattern" in row:
        values["layer_types"] = list(islice(cycle(row["pattern"]), row["num_hidden_layers"]))
    return PublishedBase(_NAME, {"model_type": row["type"], **values})


def try_row(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's cells by column, as text; `limit` is what a yes depends on."""
    from jobs.bases.trial import base_row

    tried = base_row(published_base(row))
    texts = {
        column: str(cell).replace(f"model.base={_NAME}: ", "").replace(f"model.base={_NAME}", "it")
        for column, cell in tried.cells.items()
    }
    return {"base": name, "example": row["example"], **texts, "limit": tried.limit}


def measures(rows: Mapping[str, Mapping[str, str]], complete: bool) -> list[Measure]:
    """Counts of cells by verdict, with the bars for faults."""
    cells = [row[column] for row in rows.values() for column in COLUMNS]

    def count(verdict: str) -> int:
        return sum(cell.split(":")[0] == verdict for cell in cells)

    return [
        Measure("silent cells", count("silent"), bound=("at_most", 0)),
        Measure("broken cells", count("broken"), bound=("at_most", 0)),
        Measure(
            "rows of the table",
            len(rows),
            bound=("at_least", MIN_ARCHITECTURES) if complete else None,
        ),
        *(Measure(f"cells: {verdict}", count(verdict)) for verdict in ("yes", "refused")),
    ]


def page(rows: Mapping[str, Mapping[str, str]]) -> str:
    """docs/bases.md: the table, and the reasons that its cells number."""
    reasons: dict[str, int] = {}

    def cell(text: str) -> str:
        verdict, _, reason = text.partition(": ")
        if verdict != "refused":
            return text
        for pattern, general in _GENERAL:
            reason = re.sub(pattern, general, reason)
        return f"refused: [{reasons.setdefault(reason, len(reasons) + 1)}](#reasons)"

    columns = [*COLUMNS.values(), "limit"]
    lines = [
        "| base | " + " | ".join(columns) + " |",
        "|" + "---|" * (len(columns) + 1),
        *(
            f"| {name} ({row['example']}) | "
            + " | ".join([*(cell(row[column]) for column in COLUMNS), row["limit"]])
            + " |"
            for name, row in rows.items()
        ),
    ]
    numbered = [f"{number}. {reason}" for reason, number in reasons.items()]
    return _HEAD.format(
        count=len(rows),
        versions=", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "torch")),
        vllm=VLLM_VERSION,
    ) + "\n".join([*lines, "", "## Reasons", "", *numbered, ""])


_HEAD = """# Supported bases

<!-- generated by `python -m bench.bases` from bench/published_bases.yaml; do not edit -->

What {count} published configurations can be used for. Each was made a tiny random base with the
same layers, rotation, caps, biases and tied weights, and tried in fp32 on a CPU with {versions}.

- **yes**: the result is that of transformers and PEFT alone, within rounding.
- **refused**: a line gives the reason before anything is trained or served.
- **no**: not built yet. **not run**: vLLM was not tried; the cell has what vLLM {vllm} claims.

`loraforge doctor BASE` tries any base in the same way from its config.json, also one that is not
here. The proof at the start of every run compares the base's own weights with transformers.

- [The table](#the-table)
- [Reasons](#reasons)

## The table

"""


def _text(row: Mapping[str, str]) -> str:
    cells = [f"    {COLUMNS[column]}: {row[column]}" for column in COLUMNS if row[column] != "yes"]
    limit = f" ({row['limit']})" if row["limit"] else ""
    return "\n".join([f"{row['base']}{limit}", *cells])


def _quiet() -> None:
    """Only results on the terminal, and one thread, since tiny products are not worth more."""
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
