"""What every verb begins with: the recipe, the store, a console and, where something must run, Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from jobs.console import ConsoleProgress
    from pipelines.config.recipe import Recipe
    from pipelines.storage import Store


def open_store(uri: str) -> tuple[Store, ConsoleProgress]:
    """The store and a console."""
    from jobs.console import ConsoleProgress
    from pipelines.storage import Store

    return Store(uri), ConsoleProgress()


def open_recipe(
    recipe: Path,
    overrides: list[str] | None,
    store: str,
    verbose: bool,
    sources: bool = True,
    registers: bool = False,
    weights: bool = True,
) -> tuple[Recipe, Store, ConsoleProgress]:
    """The recipe, the store that it writes to and a console.

    What is wrong with them, with the base or (unless `sources` is False) with the data's files is said here, before
    anything slow is imported or Ray starts; also, with `registers`, that its result cannot be registered. `weights` says
    whether the base's weights are wanted, or only its configuration and tokenizer.
    """
    from jobs.cluster.ray import quiet
    from pipelines.config.load import load_recipe
    from pipelines.model.base import weight_files
    from pipelines.sources.files import find_files
    from pipelines.storage import local_base_dir

    quiet(verbose)
    loaded, (opened, progress) = load_recipe(recipe, overrides or ()), open_store(store)
    if registers:
        loaded.check_registers()
    opened.check_writable()
    if sources:
        find_files(loaded.data.sources)
    if weights:
        weight_files(loaded.model.base, loaded.model.revision)
    else:
        local_base_dir(loaded.model.base, loaded.model.revision, weights=False)
    return loaded, opened, progress


@contextmanager
def cluster(verbose: bool, needed: bool = True) -> Iterator[None]:
    """Ray inside, unless everything that was asked for is finished already. Ctrl-C is said in a line and is code 130."""
    from jobs.cluster.ray import ray_cluster

    if not needed:
        yield
        return
    try:
        with ray_cluster(verbose):
            yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Ray Train's own handler of Ctrl-C exits
        typer.echo(
            "loraforge: stopped; what is finished is kept, and the same command goes on from there",
            err=True,
        )
        raise typer.Exit(130) from stop
