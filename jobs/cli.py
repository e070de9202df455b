"""The command `loraforge`: verbs, options and exit codes. Heavy modules are imported when a verb runs.

Exit codes: 0 done, 1 the gate kept the candidate out, the demo missed its bar or the program failed, 2 a mistake that the user can mend,
130 stopped with Ctrl-C.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import (
    DEFAULT_STORE,
    Overrides,
    Prepared,
    RecipePath,
    Report,
    StoreUri,
    Trained,
    Verbose,
)
from jobs.session import cluster as _cluster
from jobs.session import open_recipe as _open
from jobs.session import open_store as _store
from pipelines.core.errors import UserError

app = typer.Typer(
    help="From an instruction dataset to a served, measured, reversible LoRA adapter on one Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def prepare(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verbose: Verbose = False,
) -> None:
    """Tokenize, mask, pack and split the dataset."""
    loaded, opened, progress = _open(recipe, overrides, store, verbose)
    from jobs.graphs.run import is_finished
    from jobs.verbs.prepare import prepare

    with _cluster(verbose, needed=not is_finished(loaded, opened, "prepare")):
        prepare(loaded, opened, progress)


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verbose: Verbose = False,
    prepared: Prepared = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="show rows, parameters, memory and time; write nothing"),
    ] = False,
) -> None:
    """Train the adapter on the prepared dataset, or go on with a broken run."""
    wanted = {"sources": prepared is None, "weights": not dry_run}
    loaded, opened, progress = _open(recipe, overrides, store, verbose, **wanted)
    if dry_run:
        from jobs.verbs.dry_run import show_plan

        return show_plan(loaded, opened, progress.console)
    from jobs.graphs.run import prepared_of

    dataset = prepared_of(loaded, opened, prepared)
    from jobs.verbs.train import find_run, train

    with _cluster(verbose, needed=find_run(loaded, opened, dataset) is None):
        train(loaded, opened, progress, dataset)


@app.command()
def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verbose: Verbose = False,
    prepared: Prepared = None,
    run: Trained = None,
) -> None:
    """Score the base and every kept checkpoint on the held-out set."""
    loaded, opened, progress = _open(recipe, overrides, store, verbose, sources=prepared is None)
    from jobs.graphs.run import made_report, prepared_of, run_of
    from jobs.verbs.evaluate import evaluate, render_table

    dataset = prepared_of(loaded, opened, prepared)
    trained = run_of(loaded, opened, dataset, run)
    with _cluster(verbose, needed=made_report(loaded, opened, dataset, trained) is None):
        report = evaluate(loaded, opened, progress, dataset, trained)
    progress.console.print(render_table(report))


@app.command()
def promote(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verbose: Verbose = False,
    prepared: Prepared = None,
    run: Trained = None,
    report: Report = None,
) -> None:
    """Register the best checkpoint and move the alias to it, if the gate lets it pass; exit code 1 if not."""
    loaded, opened, progress = _open(
        recipe, overrides, store, verbose, sources=prepared is None, registers=True
    )
    from jobs.graphs.run import prepared_of, report_of, run_of
    from jobs.verbs.promote import promote

    dataset = prepared_of(loaded, opened, prepared)
    trained = run_of(loaded, opened, dataset, run)
    scores = report_of(loaded, opened, dataset, trained, report)
    raise typer.Exit(
        0 if promote(loaded, opened, progress, dataset, trained, scores)[0].passed else 1
    )


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verbose: Verbose = False,
) -> None:
    """Prepare, train, evaluate and promote in one go; exit code 1 when the gate keeps the candidate out."""
    loaded, opened, progress = _open(recipe, overrides, store, verbose, registers=True)
    from jobs.graphs.run import is_finished, run
    from jobs.verbs.evaluate import render_table

    with _cluster(verbose, needed=not is_finished(loaded, opened, "evaluate")):
        result = run(loaded, opened, progress)
    progress.console.print(render_table(result.report))
    progress.note(
        "seconds: " + ", ".join(f"{stage} {s:.1f}" for stage, s in result.seconds.items())
    )
    if result.version:
        changed = [argument for override in overrides or () for argument in ("-s", override)]
        progress.note(
            "serve it: "
            + shlex.join(["loraforge", "serve", str(recipe), *changed, "--store", store])
        )
    raise typer.Exit(0 if result.decision.passed else 1)


@app.command()
def serve(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verbose: Verbose = False,
) -> None:
    """Answer over HTTP with the base and the promoted adapters until Ctrl-C."""
    loaded, opened, progress = _open(recipe, overrides, store, verbose, sources=False)
    from jobs.verbs.serve import serve

    with _cluster(verbose):
        serve(loaded, opened, progress)


@app.command()
def demo(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RECIPE...", help="recipes on one base; else recipes/pocket_lora_*"),
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    questions: Annotated[int, typer.Option(min=1, help="held-out questions a task")] = 64,
    bar: Annotated[
        float, typer.Option(min=0, max=1, help="share that an adapter must answer right")
    ] = 0.9,
    verbose: Verbose = False,
) -> None:
    """Run several recipes through every stage, serve all adapters on one base and question the live endpoint.

    Exit code 1 when one answers fewer than --bar of its own task's questions right.
    """
    opened = {
        str(path): _open(path, None, store, verbose, registers=True) for path in recipes or ()
    }
    from jobs.verbs.demo import DEMO_RECIPES, demo

    opened = opened or {path: _open(Path(path), None, store, verbose) for path in DEMO_RECIPES}
    _, into, progress = next(iter(opened.values()))
    with _cluster(verbose):
        passed = demo(
            {path: loaded for path, (loaded, _, _) in opened.items()},
            into,
            progress,
            questions,
            bar,
        )
    raise typer.Exit(0 if passed else 1)


@app.command()
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
    """Run a recipe as a job of a Ray cluster; the same submission twice is one job. Exit code: the job's."""
    from jobs.cluster.ray import quiet
    from pipelines.config.load import load_recipe

    loaded, (opened, progress) = load_recipe(recipe, overrides or ()), _store(store)
    import ray  # noqa: F401  (sets its loggers up when it is imported; quiet() then turns them down)

    from jobs.cluster.submit import submit

    quiet(verbose)
    job = submit(loaded, opened.uri, address, progress, follow, shared or ())
    raise typer.Exit((job.exit_code or 1) if job.status in ("FAILED", "STOPPED") else 0)


@app.command()
def inspect(
    target: Annotated[
        str,
        typer.Argument(metavar="RECIPE|DIGEST", help="a recipe, or a prepared dataset's digest"),
    ],
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verbose: Verbose = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="also write the audit as a page")
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="training samples to show")
    ] = 3,
    ids: Annotated[bool, typer.Option("--ids", help="show every token's id behind it")] = False,
) -> None:
    """Show what the loss will see of a dataset, prepared if need be; exit code 1 when something is wrong with it."""
    from jobs.verbs.inspect import dataset_digest, inspect

    if Path(target).is_file() or not re.fullmatch(r"[0-9a-f]{12,64}", target):
        loaded, opened, progress = _open(Path(target), overrides, store, verbose)
        found = dataset_digest(loaded, opened, progress, lambda: _cluster(verbose))
        limits = loaded.data.audit
    else:
        (opened, progress), found, limits = _store(store), target, None
    audit = inspect(opened, found, progress.console, limits, html, examples, ids)
    raise typer.Exit(1 if audit.problems else 0)


@app.command()
def models(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="one model; else all")
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    moves: Annotated[
        str | None, typer.Option("--history", metavar="ALIAS", help="an alias's moves instead")
    ] = None,
) -> None:
    """List registered versions with their figures and aliases."""
    from jobs.verbs.models import history, models

    opened, progress = _store(store)
    progress.console.print(
        history(opened, model, moves) if model and moves else models(opened, model)
    )


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    store: StoreUri = DEFAULT_STORE,
    alias: Annotated[str, typer.Option("--alias", help="the alias to move")] = "production",
) -> None:
    """Move an alias back to the version before the present one."""
    from jobs.verbs.models import rollback

    rollback(*_store(store), model, alias)


@app.command()
def doctor(store: StoreUri = DEFAULT_STORE) -> None:
    """Check Python, packages, CPU, GPU, Ray and disks; exit code 2 when something stands in the way."""
    from jobs.verbs.doctor import BLOCKER, doctor, render

    _store(store)[1].console.print(render(checks := doctor(Path(store))))
    raise typer.Exit(2 if any(check.verdict == BLOCKER for check in checks) else 0)


def main() -> None:
    """Run the command line; a UserError becomes one line on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        # From inside a Ray task it arrives wrapped in its traceback; its cause is the plain one.
        print("loraforge:", " ".join(str(getattr(error, "cause", error)).split()), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
