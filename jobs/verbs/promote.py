"""`loraforge promote`: the gate's decision, and the move of the alias."""

from __future__ import annotations

import typer

from jobs.options import (
    DEFAULT_STORE,
    REJECTED,
    Overrides,
    Prepared,
    RecipePath,
    Report,
    StoreUri,
    Trained,
    Verbose,
    Verify,
)
from jobs.session import open_session


def promote(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verify: Verify = False,
    verbose: Verbose = False,
    prepared: Prepared = None,
    run: Trained = None,
    report: Report = None,
) -> None:
    """Register the best evaluated checkpoint and move the alias; exit 3 if the gate rejects it."""
    session = open_session(
        recipe,
        overrides,
        store,
        verbose,
        verify=verify,
        needs_sources=prepared is None,
        needs_registry=True,
    )
    from jobs.graphs.run import recipe_graph

    graph = recipe_graph(session.inputs, session.store, prepared, run, report)
    with session.runner() as runner:
        runner.require(graph.evaluate)
        decision = runner.run(graph.promote)
    raise typer.Exit(0 if decision.passed else REJECTED)
