"""`loraforge models` and `loraforge rollback`: registered versions, and moving an alias back."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.options import DEFAULT_STORE, StoreUri
from jobs.session import open_store


def models(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="one model; else all of them")
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    history: Annotated[
        str | None, typer.Option("--history", metavar="ALIAS", help="an alias's moves instead")
    ] = None,
) -> None:
    """List registered versions with their figures and aliases."""
    from jobs.views.models import history_table, versions_table

    if history and model is None:
        raise typer.BadParameter("give the model whose alias it is", param_hint="--history")
    opened, progress = open_store(store)
    shown = (
        history_table(opened, model, history)
        if model and history
        else versions_table(opened, model)
    )
    progress.console.print(shown)


def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    store: StoreUri = DEFAULT_STORE,
    alias: Annotated[str, typer.Option("--alias", help="the alias to move")] = "production",
) -> None:
    """Move an alias back to the version before the present one."""
    from pipelines.registry.registry import Registry

    opened, progress = open_store(store)
    moved = Registry(opened).rollback(model, alias)
    progress.note(f"{model}:{alias} rolled back to {moved.version_id} (revision {moved.revision})")
