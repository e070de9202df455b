"""`loraforge validate`: whether a recipe is right, without reading data or weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from jobs.options import Overrides, RecipePath

if TYPE_CHECKING:
    from pipelines.config.recipe import Recipe


def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check a recipe: OK, or every problem with its line and exit code 2.

    Notes name what later commands would refuse: a base or rows that are not there, or an adapter
    that cannot be registered or served.
    """
    from pipelines.config.errors import RecipeError
    from pipelines.config.load import load_recipe
    from pipelines.core.digests import short

    try:
        loaded = load_recipe(recipe, overrides or ())
    except RecipeError as error:
        for problem in error.problems:
            place = str(recipe)
            if problem.position:
                place += f":{problem.position.line}:{problem.position.column}"
            text = f"{problem.key}: {problem.message}" if problem.key else problem.message
            typer.echo(f"{place}: {text}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{recipe}: OK, recipe {loaded.name} {short(loaded.digest)}")
    for note in _notes(loaded):
        typer.echo(f"note: {note}")


def _notes(recipe: Recipe) -> Iterator[str]:
    """One line for each thing that a later command would refuse, or that serving needs."""
    from jobs.bases.checks import check_loads
    from pipelines.chat.default_templates import chosen_template
    from pipelines.core.errors import UserError
    from pipelines.sources.source_files import files_at

    base, sources = recipe.model.base, recipe.data.sources
    checks: list[Callable[[], object]] = [recipe.check_registers]
    if base.startswith("/"):
        checks.append(lambda: check_loads(recipe.model))
    for number, source in enumerate(sources):
        if "://" not in source.path:
            checks.append(lambda n=number, s=source: files_at(s.path, f"data.sources.{n}.path", n))
    if recipe.data.chat_template:
        checks.append(lambda: chosen_template(recipe.data))
    notes = []
    for check in checks:
        try:
            check()
        except UserError as error:
            notes.append(str(error))
    yield from notes
    yield from (note for note in recipe.serving_notes() if not any(note in n for n in notes))
