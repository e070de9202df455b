"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe file, see recipes/")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="SECTION.KEY=VALUE", help="change a value of the recipe"),
]
StoreUri = Annotated[
    str, typer.Option("--store", metavar="URI", help="where everything is written")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="show Ray's logs")]
Prepared = Annotated[
    str | None,
    typer.Option("--prepared", metavar="DIGEST", help="dataset to read; else the recipe's"),
]
Trained = Annotated[
    str | None,
    typer.Option("--run", metavar="DIGEST", help="training run to read; else the recipe's"),
]
Report = Annotated[
    str | None, typer.Option("--report", metavar="DIGEST", help="report to read; else the recipe's")
]
DEFAULT_STORE = "loraforge-store"
