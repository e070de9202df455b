"""`loraforge inspect`: which tokens of a dataset enter the loss."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import DEFAULT_STORE, Overrides, StoreUri, Verbose, Verify
from jobs.session import open_session, open_store


def inspect(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|ID", help="a recipe, or a prepared dataset's id")
    ],
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verify: Verify = False,
    verbose: Verbose = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="also write the audit as a page")
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="training samples to show")
    ] = 3,
    worst: Annotated[
        int,
        typer.Option(
            "--worst",
            min=0,
            metavar="N",
            help="show the N samples that fail most checks or have the least in the loss",
        ),
    ] = 0,
    ids: Annotated[bool, typer.Option("--ids", help="show every token's id after it")] = False,
) -> None:
    """Show what the loss will see, preparing the dataset if needed; exit 1 if the audit fails."""
    is_recipe = Path(target).is_file() or not re.fullmatch(r"[0-9a-f]{1,64}", target)
    if is_recipe:
        session = open_session(
            Path(target), overrides, store, verbose, verify=verify, needs_weights=False
        )
        from pipelines.data.stage import prepare_step

        with session.runner() as runner:
            dataset_id = runner.run(prepare_step(session.inputs)).ref.key
        opened, progress, data = session.store, session.progress, session.recipe.data
        limits, allow_keys = data.audit, data.unused_keys.allow
    else:
        (opened, progress), dataset_id, limits, allow_keys = open_store(store), target, None, ()
    from jobs.views.dataset_audit import show_audit

    audit = show_audit(
        opened, dataset_id, progress.console, limits, html, examples, ids, worst, allow_keys
    )
    raise typer.Exit(1 if audit.problems else 0)
