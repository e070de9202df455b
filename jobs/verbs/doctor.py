"""`loraforge doctor`: whether this machine can run Loraforge, or what a base can be used for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.options import DEFAULT_STORE, StoreUri


def doctor(
    base: Annotated[
        str | None,
        typer.Argument(metavar="BASE", help="a base's folder or Hub id; else the machine"),
    ] = None,
    store: StoreUri = DEFAULT_STORE,
) -> None:
    """Check this machine, or what a base can be used for; exit 2 when something blocks a run.

    A base is tried on a tiny random copy that is made from its config.json; its weights are not
    needed. Exit code 2 means that it cannot be trained.
    """
    raise typer.Exit(_machine(Path(store)) if base is None else _base(base))


def _machine(store: Path) -> int:
    """Print the checks of this machine: Python, packages, CPU, GPU, Ray and disks."""
    from jobs.cluster.machine import BLOCKER, check_machine, checks_table
    from jobs.console import ConsoleProgress

    checks = check_machine(store)
    ConsoleProgress().console.print(checks_table(checks))
    return 2 if any(check.verdict == BLOCKER for check in checks) else 0


def _base(name: str) -> int:
    """Print the row of a base in the table of supported bases."""
    from jobs.cluster.ray import quiet

    quiet(verbose=False)
    from jobs.bases.trial import base_row
    from jobs.console import ConsoleProgress
    from jobs.views.bases import base_table
    from pipelines.config.schema import ModelConfig
    from pipelines.model.published import published_base

    base = published_base(ModelConfig(base=name))
    row = base_row(base)
    ConsoleProgress().console.print(base_table(base, row))
    return 0 if row.cells["packed"].verdict == "yes" else 2
