"""`loraforge evaluate`: the base and every kept checkpoint scored on the held-out set."""

from __future__ import annotations

from jobs.options import (
    DEFAULT_STORE,
    Overrides,
    Prepared,
    RecipePath,
    StoreUri,
    Trained,
    Verbose,
    Verify,
)
from jobs.session import open_session


def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verify: Verify = False,
    verbose: Verbose = False,
    prepared: Prepared = None,
    run: Trained = None,
) -> None:
    """Score the base and every kept checkpoint on the held-out set."""
    session = open_session(
        recipe, overrides, store, verbose, verify=verify, needs_sources=prepared is None
    )
    from jobs.bases.checks import check_evaluates
    from jobs.graphs.run import recipe_graph
    from jobs.views.scores import scores_table

    check_evaluates(session.recipe)
    graph = recipe_graph(session.inputs, session.store, prepared=prepared, run=run)
    with session.runner() as runner:
        runner.require(graph.train)
        report = runner.run(graph.evaluate)
    session.progress.console.print(scores_table(report))
    session.progress.note(f"report: {report.ref.uri}/report.html")
