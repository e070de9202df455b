"""The command `loraforge`: one module per command, heavy modules imported when a command runs.

Exit codes: 0 done, or nothing to do; 1 a failure worth trying again; 2 the user's to fix; 3 the
gate rejected the candidate; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.verbs.demo import demo
from jobs.verbs.doctor import doctor
from jobs.verbs.evaluate import evaluate
from jobs.verbs.explain import explain
from jobs.verbs.init import init
from jobs.verbs.inspect import inspect
from jobs.verbs.models import models, rollback
from jobs.verbs.prepare import prepare
from jobs.verbs.promote import promote
from jobs.verbs.recipes import recipes
from jobs.verbs.run import run
from jobs.verbs.schema import schema
from jobs.verbs.serve import serve
from jobs.verbs.submit import submit
from jobs.verbs.train import train
from jobs.verbs.validate import validate
from pipelines.core.errors import RetryError, UserError, one_line

_PANELS = {
    "A recipe": (init, validate, explain, schema),
    "Stages": (prepare, inspect, train, evaluate, promote, run),
    "Registry": (models, rollback),
    "Endpoint": (serve,),
    "Machine and cluster": (submit, doctor, demo),
}

app = typer.Typer(
    help="From an instruction dataset to a served, measured, reversible LoRA adapter on one Ray "
    "cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(recipes, name="recipes", rich_help_panel="A recipe")


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"loraforge {version('loraforge')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="show the version and exit"
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a UserError becomes one line on stderr and exit code 2 or 1."""
    try:
        app()
    except UserError as error:
        # From inside a Ray task it arrives wrapped in its traceback; its cause is the plain one.
        plain = getattr(error, "cause", error)
        print("loraforge:", one_line(plain), file=sys.stderr)
        sys.exit(1 if isinstance(plain, RetryError) else 2)


if __name__ == "__main__":
    main()
