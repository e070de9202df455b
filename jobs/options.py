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
    str, typer.Option("--store", metavar="URI", help="folder or URI that everything is written to")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="show Ray's logs")]
Verify = Annotated[
    bool,
    typer.Option("--verify", help="hash base and sources again instead of trusting file times"),
]
Prepared = Annotated[
    str | None,
    typer.Option("--prepared", metavar="ID", help="prepared dataset; default: the recipe's own"),
]
Trained = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="training run; default: the recipe's own")
]
Report = Annotated[
    str | None, typer.Option("--report", metavar="ID", help="report; default: the recipe's own")
]
DEFAULT_STORE = "loraforge-store"
REJECTED = 3
"""Exit code of a command whose candidate the gate rejected."""
