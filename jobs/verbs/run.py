"""`loraforge run`: every stage of a recipe in one go."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from jobs.options import (
    DEFAULT_STORE,
    REJECTED,
    Overrides,
    RecipePath,
    StoreUri,
    Verbose,
    Verify,
)
from jobs.session import Session, open_session

if TYPE_CHECKING:
    from jobs.graphs.run import RunResult


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verify: Verify = False,
    verbose: Verbose = False,
) -> None:
    """Prepare, train, evaluate and promote in one go; exit 3 if the gate rejects the candidate."""
    session = open_session(recipe, overrides, store, verbose, verify=verify, needs_registry=True)
    from jobs.graphs.run import run_recipe
    from jobs.views.scores import scores_table

    with session.runner() as runner:
        result = run_recipe(session.inputs, runner)
    session.progress.console.print(scores_table(result.report))
    seconds = ", ".join(f"{name} {each:.1f}" for name, each in result.seconds.items())
    session.progress.note(f"seconds: {seconds}")
    for line in _result_lines(session, result, serve_command(recipe, overrides or [], store)):
        session.progress.note(line)
    raise typer.Exit(0 if result.decision.passed else REJECTED)


def serve_command(recipe: Path, overrides: list[str], store: str) -> str:
    """The command that serves what a run promoted, quoted for a shell."""
    changes = [argument for override in overrides for argument in ("-s", override)]
    return shlex.join(["loraforge", "serve", str(recipe), *changes, "--store", store])


def _result_lines(session: Session, result: RunResult, serve: str) -> list[str]:
    """What was promoted over what on how many rows, and where report, curve and adapter are."""
    decision, version = result.decision, result.version
    lines = [
        f"report: {result.report.ref.uri}/report.html",
        f"loss curve: {result.run.ref.uri}/loss.svg",
    ]
    if version is None:
        adapter = f"{result.run.best.ref.uri}/adapter"
        return [f"not promoted: {decision.reason}", *lines, f"adapter: {adapter}"]
    rows = f"{result.prepared.heldout.num_samples:,} held-out rows"
    replaced = f", replacing {decision.incumbent}" if decision.incumbent else ""
    from jobs.views.models import moved_since

    registry = session.recipe.registry
    note = moved_since(session.store, registry.model, registry.alias, version.id)
    verb = "promoted" if note is None else "promoted earlier"
    promoted = f"{verb}: {version.id} to {registry.alias}{replaced}, scored on {rows}"
    return [
        promoted,
        *([note] if note else []),
        *lines,
        f"adapter: {version.adapter_uri}",
        f"serve it: {serve}",
    ]
