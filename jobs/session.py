"""The setup that commands share: recipe, store, console, hashes and, where needed, Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from jobs.console import ConsoleProgress
    from pipelines.config.recipe import Recipe
    from pipelines.steps.inputs import Inputs
    from pipelines.steps.runner import Runner
    from pipelines.storage import Store


@dataclass(frozen=True)
class Session:
    """One command's recipe with its resolved inputs, the store it writes to, and a console."""

    inputs: Inputs
    store: Store
    progress: ConsoleProgress
    verbose: bool

    @property
    def recipe(self) -> Recipe:
        return self.inputs.recipe

    def runner(self) -> Runner:
        """A runner in this session's store that starts Ray only when something must be built."""
        from pipelines.steps.runner import Runner

        return Runner(self.store, self.progress, lambda: ray_session(self.verbose))


def open_store(uri: str) -> tuple[Store, ConsoleProgress]:
    """The store and a console; notes when the store has artifacts of an older schema."""
    from jobs.console import ConsoleProgress
    from pipelines.storage import Store, schema_note

    store, progress = Store(uri), ConsoleProgress()
    outdated = schema_note(store)
    if outdated:
        progress.note(outdated)
    return store, progress


def open_session(
    recipe: Path,
    overrides: list[str] | None,
    store_uri: str,
    verbose: bool,
    *,
    verify: bool = False,
    needs_sources: bool = True,
    needs_registry: bool = False,
    needs_weights: bool = True,
    writes: bool = True,
) -> Session:
    """Load the recipe and look at everything it names before anything slow is imported.

    Raises UserError for errors in the recipe, a base that cannot be reached or used, missing
    weights (unless not `needs_weights`), missing data files (unless not `needs_sources`), a store
    that cannot be written (unless not `writes`), and, with `needs_registry`, a recipe whose result
    cannot be registered. With `verify`, files are hashed again even if their digests are
    remembered.
    """
    from jobs.bases.checks import check_loads
    from jobs.cluster.ray import quiet
    from pipelines.config.load import load_recipe
    from pipelines.sources.base_files import weight_files
    from pipelines.sources.hashes import FileHashes
    from pipelines.sources.source_files import find_files
    from pipelines.steps.inputs import Inputs
    from pipelines.storage import local_base_dir

    quiet(verbose)
    loaded = load_recipe(recipe, overrides or ())
    store, progress = open_store(store_uri)
    if needs_registry:
        loaded.check_registers()
    if writes:
        store.check_writable()
    if needs_sources:
        find_files(loaded.data.sources)
    local_base_dir(loaded.model.base, loaded.model.revision, needs_weights, progress)
    check_loads(loaded.model)
    if needs_weights:
        weight_files(loaded.model.base, loaded.model.revision)
    return Session(Inputs(loaded, FileHashes(verify=verify)), store, progress, verbose)


@contextmanager
def ray_session(verbose: bool, resumes: bool = True) -> Iterator[None]:
    """Ray is initialised inside. Ctrl-C ends the command with one line and exit code 130.

    `resumes` says whether the same command continues where it stopped.
    """
    from jobs.cluster.ray import ray_cluster

    try:
        with ray_cluster(verbose):
            yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Ray Train's own handler of Ctrl-C exits
        hint = "; finished work is kept, and the same command resumes it" if resumes else ""
        typer.echo(f"loraforge: stopped{hint}", err=True)
        raise typer.Exit(130) from stop
