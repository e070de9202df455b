"""`loraforge init`: a first recipe for a user's own rows. Asks nothing."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jobs.starter.base_size import BaseSize
    from jobs.starter.choices import Choices
    from jobs.starter.first_rows import FirstRows


def init(
    data: Annotated[
        str,
        typer.Option("--data", metavar="PATH|URI", help="rows: a file, a folder, a glob or a URI"),
    ],
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="'KEY: VALUE'",
            help="a key of `data.sources`, such as 'encoding: utf-16'; repeatable",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="FOLDER|ID", help="the base model; else the pocket base"),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="the recipe's name; else made from the rows' path")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="the file to write")] = (
        Path("recipe.yaml")
    ),
    force: Annotated[bool, typer.Option("--force", help="overwrite an existing file")] = False,
) -> None:
    """Write a commented recipe for your rows, sized for this machine."""
    from jobs.starter.base_size import base_size
    from jobs.starter.choices import choose
    from jobs.starter.first_rows import read_first_rows
    from jobs.starter.machine_size import machine_size
    from jobs.starter.new_file import check_absent, write_new
    from jobs.starter.source_keys import source_of
    from jobs.starter.starter_recipe import name_from, starter_text
    from pipelines.config.shipped import pocket_dir

    path = str(Path(data).expanduser()) if "://" not in data else data
    rows = read_first_rows(source_of(path, source or ()))
    check_absent(out, force)
    size, machine = base_size(base or str(pocket_dir() / "model")), machine_size()
    choices = choose(rows, size, machine)
    text = starter_text(name or name_from(data), data, out, rows, size, machine, choices)
    write_new(out, text, force)
    typer.echo(f"rows:    {data}: {_rows_line(rows)}")
    typer.echo(
        f"tokens:  median {choices.median_tokens:,}, longest {choices.longest_tokens:,}; "
        f"packed into rows of {choices.row_tokens:,}"
    )
    about = "" if rows.complete else "about "
    typer.echo(f"split:   {about}{choices.num_heldout:,} held-out rows score the adapter")
    typer.echo(f"machine: {machine}")
    for note in _notes(rows, size, choices, base is None):
        typer.echo(f"note:    {note}")
    typer.echo(f"\n{out} is written. Next:")
    for verb in ("inspect", "run", "serve"):
        typer.echo("  " + shlex.join(["loraforge", verb, str(out)]))


def _rows_line(rows: FirstRows) -> str:
    count = f"{rows.num_rows:,} rows" if rows.exact else f"about {rows.num_rows:,} rows"
    if rows.num_files > 1:
        count += f" in {rows.num_files} files"
    formats = ", ".join(f"{name} ({count:,})" for name, count in rows.formats.items())
    formats = formats if len(rows.formats) > 1 else next(iter(rows.formats))
    mapped = ", ".join(f"{column} as {key}" for key, column in rows.source.columns.items())
    return f"{count}, format {formats}" + (f", with {mapped}" if mapped else "")


def _notes(rows: FirstRows, size: BaseSize, choices: Choices, pocket: bool) -> list[str]:
    """What a newcomer should know before the run."""
    notes = []
    if pocket:
        notes.append(
            "no --base is given, so this is the pocket base: small enough for any CPU, and good "
            "for trying things out only; give --base ORG/NAME or a folder for a real model"
        )
    if size.note:
        notes.append(f"lengths are estimated, because the tokenizer cannot be read: {size.note}")
    if rows.errors:
        reason, _ = max(rows.errors.items(), key=lambda item: item[1])
        notes.append(
            f"{rows.num_errors:,} of the first {rows.num_errors + len(rows.conversations):,} rows "
            f"cannot be used, most often because: {reason}; `loraforge prepare` fails above "
            "data.max_rejects_share=0.01"
        )
    if choices.num_too_long:
        notes.append(
            f"{choices.num_too_long:,} of the first {len(rows.conversations):,} rows are longer "
            f"than {choices.row_tokens:,} tokens and will be dropped; data.too_long: split keeps "
            "them in pieces"
        )
    if not choices.num_heldout:
        notes.append("no row is held out, so `loraforge run` cannot score the adapter: add rows")
    if size.num_parameters > 10**9 and not choices.gpus_per_worker:
        billions = f"{size.num_parameters / 1e9:.1f} billion"
        notes.append(f"this base has {billions} parameters: training it on a CPU takes very long")
    return notes
