"""`loraforge promote`: the gate's decision, and the move of the alias."""

from __future__ import annotations

from typing import Annotated

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
from jobs.session import Session, open_session


def promote(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verify: Verify = False,
    verbose: Verbose = False,
    prepared: Prepared = None,
    run: Trained = None,
    report: Report = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="move the alias back to the version that this run promoted"),
    ] = False,
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
    if decision.passed:
        _follow_alias(session, decision.version_id, again)
    raise typer.Exit(0 if decision.passed else REJECTED)


def _follow_alias(session: Session, version_id: str, again: bool) -> None:
    """Note that the alias was moved since the decision, or with `again` move it back."""
    from jobs.views.models import moved_since
    from pipelines.registry.registry import Registry

    registry, section = Registry(session.store), session.recipe.registry
    note = moved_since(session.store, section.model, section.alias, version_id)
    alias = registry.alias(section.model, section.alias)
    if note and again and alias:
        registry.promote(
            section.model,
            section.alias,
            version_id,
            alias.revision,
            reason="promoted again by hand",
            override=True,
        )
        note = f"{section.alias} moved from {alias.version_id} to {version_id}"
    if again and note is None:
        note = f"{section.alias} is already at {version_id}"
    if note:
        session.progress.note(note)
