"""`loraforge schema`: the JSON schema of a recipe."""

from __future__ import annotations

import typer


def schema() -> None:
    """Print the JSON schema of a recipe file, for editors and other tools."""
    from pipelines.config.recipe_reference import json_schema_text

    typer.echo(json_schema_text(), nl=False)
