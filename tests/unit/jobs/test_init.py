"""`loraforge init`: the recipe that it writes loads, fits rows and machine, and never surprises."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from jobs.starter import machine_size as machine_module
from jobs.starter.base_size import BaseSize, base_size
from jobs.starter.choices import choose, choose_heldout_share, choose_row_tokens
from jobs.starter.first_rows import read_first_rows, split_keys
from jobs.starter.machine_size import MachineSize
from jobs.verbs.init import init
from pipelines.config.load import load_recipe
from pipelines.config.recipe import Recipe
from pipelines.config.schema import SourceConfig
from pipelines.config.shipped import pocket_dir
from pipelines.core.errors import UserError

app = typer.Typer()
app.command()(init)
POCKET = str(pocket_dir() / "model")
CPU, GPU = MachineSize(4), MachineSize(16, 1, "H100", 80 << 30)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine_module, "machine_size", lambda: CPU)


def write_rows(path: Path, count: int = 50, keys: tuple[str, str] = ("question", "answer")) -> Path:
    rows = [
        {keys[0]: f"How much is {i} and {i}?", keys[1]: f"It is {2 * i}."} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_init(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_recipe_is_written_that_loads_and_names_the_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "my rows.jsonl")
    output = run_init("--data", "my rows.jsonl")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.name == "my-rows" and recipe.registry.model == "my-rows"
    assert recipe.data.sources[0].path == str(tmp_path / "my rows.jsonl")
    assert recipe.model.base == POCKET and recipe.resources.gpus_per_worker == 0
    assert "50 rows, format question_answer" in output
    assert "no --base is given, so this is the pocket base" in output
    assert recipe.data.row_tokens == 256 and recipe.train.epochs <= 40


def test_the_next_commands_are_quoted_for_a_shell(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl")
    output = run_init("--data", "rows.jsonl", "--out", "my [1] recipe.yaml", "--name", "mine")
    commands = [line.strip() for line in output.splitlines() if line.startswith("  loraforge")]
    assert [shlex.split(command)[1:] for command in commands] == [
        [verb, "my [1] recipe.yaml"] for verb in ("inspect", "run", "serve")
    ]
    echoed = subprocess.run(
        ["bash", "-c", f"printf '%s|' {commands[1]}"], capture_output=True, text=True, check=True
    )
    assert echoed.stdout == "loraforge|run|my [1] recipe.yaml|"


def test_an_existing_file_is_never_overwritten_without_force(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(UserError, match="recipe.yaml: exists already; .* or add --force"):
        run_init("--data", "rows.jsonl")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    run_init("--data", "rows.jsonl", "--force")
    assert load_recipe(tmp_path / "recipe.yaml").name == "rows"


def test_comments_explain_the_keys_and_the_first_line_names_the_schema(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl")
    run_init("--data", "rows.jsonl", "--out", "deep.yaml")
    first, *lines = (tmp_path / "deep.yaml").read_text().splitlines()
    schema = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first)
    assert schema and (tmp_path / schema[1]).is_file()
    assert sum("#" in line for line in lines) >= 12
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("question", "answer"), {}),
        (("prompt", "completion"), {}),
        (("Question", "Response"), {"prompt": "Question", "completion": "Response"}),
        (("input", "output"), {}),
        (("Frage", "Antwort"), {"prompt": "Frage", "completion": "Antwort"}),
    ],
)
def test_columns_that_mean_question_and_answer_are_mapped(
    tmp_path: Path, keys: tuple[str, str], expected: dict[str, str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", keys=keys)
    run_init("--data", "rows.jsonl")
    assert load_recipe(tmp_path / "recipe.yaml").data.sources[0].columns == expected


def test_rows_of_every_file_type_and_folder_are_read(tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i}", "output": str(i)} for i in range(30)]
    (tmp_path / "array.json").write_text(json.dumps(rows))
    (tmp_path / "table.csv").write_text("prompt,completion\n" + "a b,c\n" * 30)
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "folder").mkdir()
    write_rows(tmp_path / "folder" / "a.jsonl", 10)
    write_rows(tmp_path / "folder" / "b.jsonl", 15)
    for name, count, files in [("array.json", 30, 1), ("table.csv", 30, 1), ("folder", 25, 2)]:
        shown = read_first_rows(SourceConfig(path=str(tmp_path / name)))
        assert (shown.num_rows, shown.exact, shown.num_files) == (count, True, files), name
    packed = SourceConfig(path=str(tmp_path / "packed.jsonl.gz"))
    assert read_first_rows(packed).formats == {"alpaca": 30}
    run_init("--data", "folder")
    assert load_recipe(tmp_path / "recipe.yaml").data.sources[0].path == str(tmp_path / "folder")


def test_rows_that_cannot_be_used_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"foo": "a"}\n{"foo": "b"}\n')
    with pytest.raises(
        UserError,
        match=r"none of the first 2 rows can be used: unknown format: .*\(first at text.jsonl:1\)",
    ):
        run_init("--data", "text.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="--data .*empty.jsonl: holds no row"):
        run_init("--data", "empty.jsonl")
    with pytest.raises(UserError, match=r"--data=.*texts.jsonl: no such file; did you mean .*text"):
        run_init("--data", "texts.jsonl")
    assert not (tmp_path / "recipe.yaml").exists()


def test_some_broken_rows_are_a_note(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    path.write_text(path.read_text() + '{"question": "a", "answer": ""}\n{broken\n')
    output = run_init("--data", "rows.jsonl")
    assert "2 of the first 52 rows cannot be used" in output
    assert "(first at rows.jsonl:5" in output


def test_a_name_that_no_recipe_can_have_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="name: String should match pattern"):
        run_init("--data", "rows.jsonl", "--name", "a b")
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="model.base=./nothing: no such folder"):
        run_init("--data", "rows.jsonl", "--base", "./nothing")


def test_a_hub_that_cannot_be_reached_costs_only_the_measured_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> Path:
        raise UserError("model.base=org/base: the Hub did not answer")

    monkeypatch.setattr("jobs.starter.base_size.local_base_dir", unreachable)
    write_rows(tmp_path / "rows.jsonl")
    output = run_init("--data", "rows.jsonl", "--base", "org/base")
    assert "lengths are estimated" in output and "the Hub did not answer" in output
    assert load_recipe(tmp_path / "recipe.yaml").model.base == "org/base"


# -- the held-out share ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [5, 20, 50, 66, 67, 100, 200, 350, 1000, 2000])
def test_at_least_twenty_rows_and_at_most_a_third_are_held_out(num_rows: int) -> None:
    keys = np.random.default_rng(num_rows).random(num_rows).tolist()
    share, count = choose_heldout_share(num_rows, keys)
    assert 0 < share <= 0.3 and count == sum(key < share for key in keys)
    assert count >= 20 or share == 0.3
    if num_rows >= 200:
        assert 0.1 * num_rows <= count <= 0.15 * num_rows


def test_a_large_dataset_holds_out_five_hundred_rows() -> None:
    assert choose_heldout_share(50_000, None) == (0.01, 500)
    assert choose_heldout_share(10**7, None)[0] == 0.001


def test_the_expected_rows_are_those_that_prepare_holds_out(tmp_path: Path) -> None:
    from pipelines.core.progress import SILENT
    from pipelines.storage import Store
    from tests.stages import prepare, serial_tokenize

    write_rows(tmp_path / "rows.jsonl", 120)
    output = run_init("--data", "rows.jsonl")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    keys = split_keys(read_first_rows(SourceConfig(path="rows.jsonl")).conversations)
    expected = sum(key < recipe.data.heldout_share for key in keys)
    assert expected >= 20 and f"split:   {expected} held-out rows" in output
    prepared = prepare(recipe, Store(tmp_path / "store"), SILENT, serial_tokenize)
    assert prepared.heldout.num_samples == expected


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "num_rows", "window", "expected"),
    [
        ([50] * 50, 50, 4096, 256),
        ([200] * 2000, 2000, 4096, 1024),
        ([200] * 2000, 50_000, 4096, 2048),
        ([200] * 2000, 50_000, 1024, 1024),
        ([3000] * 100, 100, 8192, 4096),
        ([3000] * 100, 100, 1024, 1024),
        ([150] * 100, 100, 4096, 512),
        ([60], 1, 200, 200),
    ],
)
def test_packed_rows_fit_the_rows_and_the_window(
    lengths: list[int], num_rows: int, window: int, expected: int
) -> None:
    assert choose_row_tokens(np.array(lengths), window, num_rows) == expected


def choices_for(count: int, tmp_path: Path, base: BaseSize, machine: MachineSize):
    source = SourceConfig(path=str(write_rows(tmp_path / "r.jsonl", count)))
    return choose(read_first_rows(source), base, machine)


@pytest.mark.parametrize("count", [1, 20, 50, 500, 3000])
def test_steps_are_enough_and_batches_fit_the_number_of_rows(tmp_path: Path, count: int) -> None:
    choices = choices_for(count, tmp_path, base_size(POCKET), CPU)
    assert 1 <= choices.epochs <= 40 and 1 <= choices.global_batch <= 16
    assert choices.num_steps >= 240 or choices.epochs == 40
    assert choices.save_every * 4 >= choices.num_steps and choices.quantization == "none"
    assert (choices.workers, choices.gpus_per_worker) == (1, 0)


def test_a_gpu_is_used_and_a_base_that_does_not_fit_is_quantized(tmp_path: Path) -> None:
    small = choices_for(500, tmp_path, BaseSize("org/small", 8192, 8 * 10**9), GPU)
    assert (small.gpus_per_worker, small.quantization, small.workers) == (1, "none", 1)
    large = choices_for(500, tmp_path, BaseSize("org/large", 8192, 70 * 10**9), GPU)
    assert (large.gpus_per_worker, large.quantization) == (1, "nf4")
    pocket = choices_for(500, tmp_path, base_size(POCKET), GPU)
    assert pocket.gpus_per_worker == 0


def test_several_gpus_share_a_batch_that_is_a_multiple_of_them(tmp_path: Path) -> None:
    machine = MachineSize(64, 3, "H100", 80 << 30)
    choices = choices_for(3000, tmp_path, BaseSize("org/base", 8192, 10**9), machine)
    assert choices.workers == 3 and choices.global_batch % 3 == 0 and choices.global_batch > 0


def test_a_recipe_for_a_gpu_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "machine_size", lambda: GPU)
    write_rows(tmp_path / "rows.jsonl")
    monkeypatch.setattr(
        "jobs.starter.base_size.base_size", lambda base: BaseSize(base, 8192, 8 * 10**9)
    )
    run_init("--data", "rows.jsonl", "--base", "org/base")
    recipe: Recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.resources.gpus_per_worker, recipe.resources.serve_gpus) == (1, 1)
    assert (recipe.train.zero, recipe.train.gradient_checkpointing) == (0, "auto")


def test_the_pocket_bases_parameters_are_counted_from_its_configuration() -> None:
    size = base_size(POCKET)
    assert size.is_pocket and size.window == 1024 and size.renderer is not None
    weights = pocket_dir() / "model" / "model.safetensors"
    assert abs(2 * size.num_parameters - weights.stat().st_size) < 0.01 * weights.stat().st_size
