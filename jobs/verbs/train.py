"""`loraforge train`: packed rows to verified checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.options import DEFAULT_STORE, Overrides, Prepared, RecipePath, StoreUri, Verbose, Verify
from jobs.session import open_session


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verify: Verify = False,
    verbose: Verbose = False,
    prepared: Prepared = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="show rows, parameters, memory and time; write nothing"),
    ] = False,
) -> None:
    """Train the adapter on the prepared dataset, or resume an interrupted run."""
    session = open_session(
        recipe,
        overrides,
        store,
        verbose,
        verify=verify,
        needs_sources=prepared is None,
        needs_weights=not dry_run,
        writes=not dry_run,
    )
    if dry_run:
        from jobs.views.dry_run import show_dry_run

        return show_dry_run(session.inputs, session.store, session.progress.console)
    from jobs.graphs.run import check_base, recipe_graph

    graph = recipe_graph(session.inputs, session.store, prepared=prepared)
    with session.runner() as runner:
        runner.require(graph.prepare)
        check_base(session.recipe, runner, graph)
        runner.run(graph.train)
