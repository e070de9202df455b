"""The command `loraforge`: verbs, options and exit codes. Heavy modules are imported when a verb runs.

Exit codes: 0 done, 1 the gate kept the candidate out or the program failed, 2 a mistake that the user can mend.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.contracts import UserError

if TYPE_CHECKING:
    from jobs.console import ConsoleProgress
    from pipelines.recipe import Recipe
    from pipelines.storage import Store

app = typer.Typer(
    help="From an instruction dataset to a served, measured, reversible LoRA adapter on one Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe file, see recipes/")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="SECTION.KEY=VALUE", help="change a value of the recipe")
]
StoreUri = Annotated[str, typer.Option("--store", metavar="URI", help="where everything is written")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="show Ray's logs")]
Prepared = Annotated[
    str | None, typer.Option("--prepared", metavar="DIGEST", help="dataset to read; else the recipe's")
]
Trained = Annotated[str | None, typer.Option("--run", metavar="DIGEST", help="training run to read; else the recipe's")]
Report = Annotated[str | None, typer.Option("--report", metavar="DIGEST", help="report to read; else the recipe's")]
DEFAULT_STORE = "loraforge-store"


@contextmanager
def _session(
    recipe: Path, overrides: list[str] | None, store: str, verbose: bool, ray: bool = True
) -> Iterator[tuple[Recipe, Store, ConsoleProgress]]:
    """The recipe, the store and a console, with Ray running inside unless `ray` is False."""
    from jobs.cluster import ray_cluster
    from jobs.console import ConsoleProgress
    from pipelines.recipe import load_recipe
    from pipelines.storage import Store

    loaded, opened = load_recipe(recipe, overrides or ()), Store(store)
    opened.check_writable()
    if not ray:
        yield loaded, opened, ConsoleProgress()
        return
    with ray_cluster(verbose):
        yield loaded, opened, ConsoleProgress()


@app.command()
def prepare(
    recipe: RecipePath, overrides: Overrides = None, store: StoreUri = DEFAULT_STORE, verbose: Verbose = False
) -> None:
    """Tokenize, mask, pack and split the dataset."""
    with _session(recipe, overrides, store, verbose) as (loaded, opened, progress):
        from jobs.prepare import prepare

        prepare(loaded, opened, progress)


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verbose: Verbose = False,
    prepared: Prepared = None,
) -> None:
    """Train the adapter on the prepared dataset, or go on with a broken run."""
    with _session(recipe, overrides, store, verbose) as (loaded, opened, progress):
        from jobs.run import prepared_of
        from jobs.train import train

        train(loaded, opened, progress, prepared_of(loaded, opened, prepared))


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
    with _session(recipe, overrides, store, verbose) as (loaded, opened, progress):
        from jobs.evaluate import evaluate, render_table
        from jobs.run import prepared_of, run_of

        dataset = prepared_of(loaded, opened, prepared)
        report = evaluate(loaded, opened, progress, dataset, run_of(loaded, opened, dataset, run))
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
    with _session(recipe, overrides, store, verbose, ray=False) as (loaded, opened, progress):
        from jobs.promote import promote
        from jobs.run import prepared_of, report_of, run_of

        dataset = prepared_of(loaded, opened, prepared)
        trained = run_of(loaded, opened, dataset, run)
        scores = report_of(loaded, opened, dataset, trained, report)
        decision, _ = promote(loaded, opened, progress, dataset, trained, scores, Path.cwd())
        raise typer.Exit(0 if decision.passed else 1)


@app.command()
def run(
    recipe: RecipePath, overrides: Overrides = None, store: StoreUri = DEFAULT_STORE, verbose: Verbose = False
) -> None:
    """Prepare, train, evaluate and promote in one go; exit code 1 when the gate keeps the candidate out."""
    with _session(recipe, overrides, store, verbose) as (loaded, opened, progress):
        from jobs.evaluate import render_table
        from jobs.run import run

        result = run(loaded, opened, progress)
        progress.console.print(render_table(result.report))
        progress.note("seconds: " + ", ".join(f"{stage} {s:.1f}" for stage, s in result.seconds.items()))
        if result.version:
            progress.note(f"serve it: loraforge serve {recipe} --store {store}")
        raise typer.Exit(0 if result.decision.passed else 1)


@app.command()
def serve(
    recipe: RecipePath, overrides: Overrides = None, store: StoreUri = DEFAULT_STORE, verbose: Verbose = False
) -> None:
    """Answer over HTTP with the base and the promoted adapters until Ctrl-C."""
    with _session(recipe, overrides, store, verbose) as (loaded, opened, progress):
        from jobs.serve import serve

        serve(loaded, opened, progress, block=True)


@app.command()
def demo(
    recipes: Annotated[
        list[Path] | None, typer.Argument(metavar="RECIPE...", help="recipes on one base; else recipes/pocket_lora_*")
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    questions: Annotated[int, typer.Option(min=1, help="held-out questions a task")] = 64,
    verbose: Verbose = False,
) -> None:
    """Run several recipes through every stage, serve all adapters on one base and question the live endpoint."""
    from jobs.cluster import ray_cluster
    from jobs.console import ConsoleProgress
    from jobs.demo import DEMO_RECIPES, demo
    from pipelines.recipe import load_recipe
    from pipelines.storage import Store

    paths = recipes or [Path(path) for path in DEMO_RECIPES]
    loaded = {str(path): load_recipe(path) for path in paths}
    opened = Store(store)
    opened.check_writable()
    with ray_cluster(verbose):
        demo(loaded, opened, ConsoleProgress(), questions)


@app.command()
def submit(
    recipe: RecipePath,
    address: Annotated[
        str, typer.Option("--address", metavar="URL", envvar="RAY_API_SERVER_ADDRESS", help="the cluster's dashboard")
    ],
    overrides: Overrides = None,
    store: Annotated[str, typer.Option("--store", metavar="URI", help="reachable from the cluster")] = DEFAULT_STORE,
    shared: Annotated[
        list[Path] | None, typer.Option("--shared", metavar="DIR", help="a folder that every node sees; not uploaded")
    ] = None,
    follow: Annotated[bool, typer.Option(help="show the job's log until it ends")] = True,
    verbose: Verbose = False,
) -> None:
    """Run a recipe as a job of a Ray cluster; the same submission twice is one job. Exit code: the job's."""
    from jobs.cluster import quiet
    from jobs.console import ConsoleProgress
    from jobs.submit import submit
    from pipelines.recipe import load_recipe
    from pipelines.storage import Store

    quiet(verbose)
    store_uri = Store(store).uri
    job = submit(load_recipe(recipe, overrides or ()), store_uri, address, ConsoleProgress(), follow, shared or ())
    failed = job.status in ("FAILED", "STOPPED")
    raise typer.Exit((job.exit_code or 1) if failed else 0)


@app.command()
def doctor(store: StoreUri = DEFAULT_STORE) -> None:
    """Check Python, packages, CPU, GPU, Ray and disks; exit code 2 when something stands in the way."""
    from jobs.console import ConsoleProgress
    from jobs.doctor import BLOCKER, doctor, render

    checks = doctor(Path(store))
    ConsoleProgress().console.print(render(checks))
    raise typer.Exit(2 if any(check.verdict == BLOCKER for check in checks) else 0)


def main() -> None:
    """Run the command line; a UserError becomes one line on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        # A mistake found inside a Ray task arrives wrapped in its traceback; its cause is the plain one.
        print(f"loraforge: {getattr(error, 'cause', error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
