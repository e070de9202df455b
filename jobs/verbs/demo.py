"""`loraforge demo`: several recipes through every stage, served on one base and questioned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.options import DEFAULT_STORE, StoreUri, Verbose
from jobs.session import open_session


def demo(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RECIPE...", help="recipes on one base; else the three pocket ones"),
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    questions: Annotated[int, typer.Option(min=1, help="held-out questions a task")] = 64,
    bar: Annotated[
        float, typer.Option(min=0, max=1, help="share of right answers that an adapter must reach")
    ] = 0.9,
    verbose: Verbose = False,
) -> None:
    """Run several recipes, serve all adapters on one base and question the live endpoint.

    Exit code 1 when an adapter answers a smaller share of its own task's questions than --bar.
    """
    from pipelines.config.shipped import recipes_dir

    names = ("person", "pirate", "order")
    paths = recipes or [recipes_dir() / f"pocket_lora_{name}_cpu.yaml" for name in names]
    sessions = [open_session(path, None, store, verbose, needs_registry=True) for path in paths]
    from jobs.graphs.demo import run_demo

    inputs = {str(path): session.inputs for path, session in zip(paths, sessions, strict=True)}
    with sessions[0].runner() as runner:
        code = run_demo(inputs, runner, sessions[0].progress, questions, bar)
    raise typer.Exit(code)
