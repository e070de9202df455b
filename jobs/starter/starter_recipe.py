"""The text of a starter recipe: the keys that a newcomer changes first, each with a comment."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from jobs.starter.base_size import BaseSize
from jobs.starter.choices import MAX_HELDOUT_SHARE, MIN_HELDOUT, Choices
from jobs.starter.first_rows import FirstRows
from jobs.starter.machine_size import MachineSize
from pipelines.config.recipe import parse_recipe
from pipelines.config.shipped import path_from, with_schema_comment, yaml_on_one_line

_MAX_NAME_CHARS = 63


def starter_text(
    name: str,
    data: str,
    out: Path,
    rows: FirstRows,
    base: BaseSize,
    machine: MachineSize,
    choices: Choices,
) -> str:
    """The recipe for rows at `data` (a path seen from the working directory, or a URI).

    Raises RecipeError for a name that a recipe cannot have.
    """
    where = path_from(out, Path(base.base)) if Path(base.base).is_dir() else base.base
    source = [f"    - path: {yaml_on_one_line(_source_path(data, out))}"]
    keys = rows.source.model_dump(exclude={"path"}, exclude_defaults=True)
    source += [f"      {key}: {yaml_on_one_line(value)}" for key, value in keys.items()]
    number = f"{rows.num_rows:,}" if rows.exact else f"about {rows.num_rows:,}"
    text = f"""\
# Recipe for {number} rows on {machine}, written by `loraforge init`.
# All keys: `loraforge explain`, or docs/recipe.md. Try a value: -s train.lr=1e-4.
name: {yaml_on_one_line(name)}
model:
  base: {yaml_on_one_line(where)}
  quantization: {choices.quantization} # nf4 is QLoRA: 4-bit weights, a quarter of the memory
lora:
  r: 16 # rank: more can learn more, and takes more memory
  alpha: 32
  targets: all-linear
data:
  sources:
{chr(10).join(source)}
{_heldout_comment(choices, rows.complete)}
  heldout_share: {choices.heldout_share:g}
  # Tokens of a row: median {choices.median_tokens:,}, longest {choices.longest_tokens:,}.
  row_tokens: {choices.row_tokens} # longer rows are dropped; too_long: split keeps them in pieces
train:
  # {choices.epochs} epochs are about {choices.num_steps:,} steps.
  epochs: {choices.epochs}
  global_batch: {choices.global_batch} # packed rows of one step
  lr: {_learning_rate(base)}
  warmup_share: 0.1
  save_every: {choices.save_every} # steps between checkpoints; each is scored on the held-out rows
{_memory_lines(choices)}eval:
  max_new_tokens: {choices.max_new_tokens} # enough for 95 of 100 answers
gate:
  # The adapter is promoted if its held-out loss is at least 1 % below the base's.
  metric: heldout_loss
  margin: 0.01
registry:
  model: {yaml_on_one_line(name)} # the adapter's name in the registry and in the API
serve:
  max_model_tokens: {min(max(1024, choices.row_tokens), base.window)}
resources:
  workers: {choices.workers}
  cpus_per_worker: {choices.cpus_per_worker}
  gpus_per_worker: {choices.gpus_per_worker}
  serve_gpus: {choices.gpus_per_worker}
"""
    text = with_schema_comment(text, out)
    parse_recipe(yaml.safe_load(text), str(out))
    return text


def name_from(data: str) -> str:
    """A recipe's name made from the path of its rows: the last part without suffixes."""
    last = data.rstrip("/").rsplit("/", 1)[-1].partition(".")[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")
    return name[:_MAX_NAME_CHARS] or "my-adapter"


def _source_path(data: str, out: Path) -> str:
    return data if "://" in data else path_from(out, Path(data).expanduser())


def _heldout_comment(choices: Choices, exact: bool) -> str:
    percent = f"{100 * choices.heldout_share:.3g} %"
    count = f"{choices.num_heldout:,}" if exact else f"About {choices.num_heldout:,}"
    first = f"  # {count} rows ({percent}) are never trained on: they score the adapter."
    if choices.heldout_share < MAX_HELDOUT_SHARE or choices.num_heldout >= MIN_HELDOUT:
        return first
    return (
        f"{first}\n  # {MIN_HELDOUT} or more would score it better, but training needs the rest: "
        "add rows if you can."
    )


def _learning_rate(base: BaseSize) -> str:
    if base.is_pocket:
        return "3.0e-3 # high, because the pocket base is tiny; 1e-4 to 3e-4 suits real models"
    return "2.0e-4 # 1e-4 to 3e-4 suits most models"


def _memory_lines(choices: Choices) -> str:
    """On a GPU the trainer chooses how to fit; on a CPU the defaults are right."""
    if not choices.gpus_per_worker:
        return ""
    zero = 0 if choices.workers == 1 else 2
    return (
        f"  zero: {zero}\n  gradient_checkpointing: auto # recompute only as much as memory needs\n"
    )
