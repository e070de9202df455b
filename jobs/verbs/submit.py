"""`loraforge submit`: a recipe's run as a job of a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.options import DEFAULT_STORE, Overrides, RecipePath, StoreUri, Verbose
from jobs.session import open_store


def submit(
    recipe: RecipePath,
    address: Annotated[
        str,
        typer.Option(
            "--address",
            metavar="URL",
            envvar="RAY_API_SERVER_ADDRESS",
            help="the cluster's dashboard",
        ),
    ],
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    shared: Annotated[
        list[Path] | None,
        typer.Option("--shared", metavar="DIR", help="a folder that every node sees; not uploaded"),
    ] = None,
    follow: Annotated[bool, typer.Option(help="show the job's log until it ends")] = True,
    verbose: Verbose = False,
) -> None:
    """Run a recipe as a cluster job; submitting it twice starts one job. Exit code: the job's."""
    from jobs.cluster.ray import quiet
    from pipelines.config.load import load_recipe

    loaded, (opened, progress) = load_recipe(recipe, overrides or ()), open_store(store)
    import ray  # noqa: F401  (importing it resets its log levels, which quiet() then lowers)

    from jobs.cluster.submit import submit_job

    quiet(verbose)
    job = submit_job(loaded, opened.uri, address, progress, follow, shared or ())
    raise typer.Exit((job.exit_code or 1) if job.status in ("FAILED", "STOPPED") else 0)
