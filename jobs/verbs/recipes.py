"""`loraforge recipes`: the recipes that ship with the package."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="see `loraforge recipes ls`")]

recipes = typer.Typer(help="List, show and copy the shipped recipes.", no_args_is_help=True)


@recipes.command("ls")
def list_recipes() -> None:
    """List the shipped recipes and what each is for."""
    from pipelines.config.shipped import shipped_recipes, summary_of

    shipped = shipped_recipes()
    width = max(map(len, shipped), default=0)
    for name, path in shipped.items():
        typer.echo(f"{name:{width}}  {summary_of(path)}")


@recipes.command("show")
def show_recipe(name: Name) -> None:
    """Print a shipped recipe, its comments included."""
    from pipelines.config.shipped import shipped_recipe

    typer.echo(shipped_recipe(name).read_text(encoding="utf-8"), nl=False)


@recipes.command("cp")
def copy_recipe(
    name: Name,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="a file or a folder; else NAME.yaml in this folder"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite an existing file")] = False,
) -> None:
    """Copy a shipped recipe, with paths that work from where the copy is."""
    from jobs.starter.new_file import write_new
    from pipelines.config.shipped import copied_text, shipped_recipe

    recipe = shipped_recipe(name)
    target = target or Path(recipe.name)
    if target.is_dir():
        target = target / recipe.name
    write_new(target, copied_text(recipe, target), force)
    typer.echo(f"{target}: written; edit it, then: loraforge validate {shlex.quote(str(target))}")
