"""`loraforge validate`: one line for a right recipe, a line a problem for a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jobs.verbs.validate import validate
from pipelines.config.load import load_recipe
from pipelines.core.digests import short
from pipelines.core.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
app = typer.Typer()
app.command()(validate)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodel: {base: org/base}\ndata: {sources: [rows.jsonl]}\n")
    return path


def test_a_right_recipe_is_one_line_with_its_digest(path: Path) -> None:
    done = CliRunner().invoke(app, [str(path)])
    digest = short(load_recipe(path).digest)
    assert (done.exit_code, done.stdout) == (0, f"{path}: OK, recipe mine {digest}\n")


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "recipes").glob("pocket*.yaml")))
def test_every_shipped_pocket_recipe_is_right(name: str) -> None:
    done = CliRunner().invoke(app, [str(ROOT / "recipes" / name)])
    assert done.exit_code == 0 and ": OK, recipe pocket-" in done.stdout


def test_every_problem_is_a_line_with_its_place_and_the_exit_code_is_2(path: Path) -> None:
    path.write_text(path.read_text() + "lora:\n  rr: 8\n  r: 0\nlearning_rate: 1\n")
    done = CliRunner().invoke(app, [str(path), "-s", "train.lr=-1"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{path}:5:3: lora.rr: unknown key; did you mean lora.r?",
        f"{path}:6:3: lora.r: Input should be greater than or equal to 1 (given: 0)",
        f"{path}:7:1: learning_rate: unknown key; here it is train.lr",
        f"{path}: train.lr: Input should be greater than 0 (given: -1)",
    ]


def test_keys_that_contradict_each_other_have_a_place_too(path: Path) -> None:
    path.write_text(path.read_text() + "train:\n  global_batch: 3\n  micro_batch: 2\n")
    done = CliRunner().invoke(app, [str(path)])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{path}:5:3: train.global_batch=3 is not a multiple of")


def test_a_text_that_is_no_yaml_has_a_place(path: Path) -> None:
    path.write_text("name: [1\nmodel: 2\n")
    done = CliRunner().invoke(app, [str(path)])
    assert done.exit_code == 2 and f"{path}:2:" in done.stderr


def test_a_missing_file_and_another_tools_file_are_user_errors(path: Path) -> None:
    for name, text, reason in [
        ("gone.yaml", None, "cannot read the recipe"),
        ("axolotl.yaml", "base_model: a\nadapter: lora\ndatasets: []\n", "an Axolotl config"),
    ]:
        if text:
            path.with_name(name).write_text(text)
        done = CliRunner().invoke(app, [str(path.with_name(name))])
        assert isinstance(done.exception, UserError) and reason in str(done.exception)


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (["data.sources=gone.jsonl"], "data.sources.0.path="),
        (["model.base=/nowhere/model"], "model.base=/nowhere/model: no such folder"),
        (["lora.dora=true"], "lora.dora trains "),
        (["train.method=full"], "train.method=full makes a whole model"),
        (["serve.engine=vllm"], "start vLLM with --max-lora-rank 8"),
    ],
)
def test_a_note_names_what_a_later_command_would_refuse_or_need(
    path: Path, overrides: list[str], note: str
) -> None:
    changes = [argument for override in overrides for argument in ("-s", override)]
    done = CliRunner().invoke(app, [str(path), *changes])
    assert done.exit_code == 0
    first, *notes = done.stdout.splitlines()
    assert ": OK, " in first and sum(note in line for line in notes) == 1
    assert all(line.startswith("note: ") for line in notes)
