"""`loraforge doctor`: whether this machine can run Loraforge."""

from __future__ import annotations

from pathlib import Path

import typer

from jobs.options import DEFAULT_STORE, StoreUri


def doctor(store: StoreUri = DEFAULT_STORE) -> None:
    """Check Python, packages, CPU, GPU, Ray and disks; exit 2 when something blocks a run."""
    from jobs.cluster.machine import BLOCKER, check_machine, checks_table
    from jobs.console import ConsoleProgress

    checks = check_machine(Path(store))
    ConsoleProgress().console.print(checks_table(checks))
    raise typer.Exit(2 if any(check.verdict == BLOCKER for check in checks) else 0)
