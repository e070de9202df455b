"""`loraforge train --dry-run`: says what matters, writes nothing, and refuses what the run would
refuse.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.views.dry_run import dry_run
from pipelines.config.recipe import parse_recipe
from pipelines.core.errors import UserError
from pipelines.steps.inputs import Inputs
from pipelines.storage import Store

RECIPE = str(Path(__file__).parents[3] / "recipes" / "pocket_lora_person_cpu.yaml")


def test_dry_run_shows_rows_parameters_memory_and_time(tmp_path: Path) -> None:
    shown = CliRunner().invoke(
        app, ["train", RECIPE, "--store", str(tmp_path), "--dry-run", "-s", "lora.dora=true"]
    )
    assert shown.exit_code == 0, shown.output
    for part in (
        "q_proj",
        "115,456 of 1,771,200",
        "optimizer",
        "TFLOP/s",
        "lora.dora trains",
        "loraforge prepare",
    ):
        assert part in shown.output
    assert list(tmp_path.iterdir()) == []


def test_dry_run_refuses_targets_that_are_not_there(tmp_path: Path) -> None:
    given = ["train", RECIPE, "--store", str(tmp_path), "--dry-run", "-s", "lora.targets=[wq]"]
    error = CliRunner().invoke(app, given).exception
    assert isinstance(error, UserError) and "q_proj" in str(error)


LLAMA3_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip


def test_dry_run_needs_no_weights_and_counts_exactly(tmp_path: Path, pocket_base: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in [*Path(pocket_base).glob("tokenizer*"), *Path(pocket_base).glob("*.jinja")]:
        shutil.copy(file, base)
    (base / "config.json").write_text(json.dumps(LLAMA3_8B))
    given = [
        "train",
        RECIPE,
        "--store",
        str(tmp_path / "store"),
        "-s",
        f"model.base={base}",
        "-s",
        "model.dtype=bf16",
    ]
    shown = CliRunner().invoke(app, [*given, "--dry-run", "-s", "lora.r=16"])
    assert shown.exit_code == 0, shown.output
    assert "41,943,040 of 8,030,261,248" in shown.output and "167.8 MB" in shown.output
    error = CliRunner().invoke(app, given).exception
    assert isinstance(error, UserError) and "no *.safetensors" in str(error)


def rows_table(base: str, folder: Path, rows: list[dict[str, str]], **data) -> list[list[str]]:
    """The columns of the dry run's table of rows."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"sources": [str(folder / "rows.jsonl")], "row_tokens": 32, **data}
    recipe = parse_recipe({"name": "t", "model": {"base": base}, "data": section})
    table = next(dry_run(Inputs(recipe), Store(folder / "store")))
    assert not isinstance(table, str)
    return [[str(cell) for cell in column.cells] for column in table.columns]


LONG = {"prompt": "Count.", "completion": "one two three " * 30}
SHORT = {"prompt": "Count.", "completion": "one"}


def test_dry_run_refuses_a_dataset_of_which_no_row_can_be_used(
    pocket_base: str, tmp_path: Path
) -> None:
    broken = {"prompt": "Count.", "completion": ""}
    for rows, data, reason in (
        (
            [LONG] * 30,
            {},
            r"none of 30 rows can be used: 30 x \d+ tokens, a pack has 32 \(first at ",
        ),
        (
            [SHORT, LONG],
            {"keep": ["answer_chars > 9000"]},
            "none of 2 rows can be used: 2 x data.k",
        ),
        ([LONG, broken, LONG], {}, r"none of 3 rows can be used: 2 x \d+ tokens.*; 1 x completion"),
    ):
        with pytest.raises(UserError, match=reason) as refused:
            rows_table(pocket_base, tmp_path, rows, **data)
        assert "(first at rows.jsonl:" in str(refused.value)


def test_dry_run_shows_the_first_rows_when_a_later_one_can_be_used(
    pocket_base: str, tmp_path: Path
) -> None:
    numbers, *_, endings = rows_table(pocket_base, tmp_path, [*[LONG] * 1100, SHORT])
    assert len(numbers) == 8 and all(text.startswith("left out: ") for text in endings)
    *_, endings = rows_table(pocket_base, tmp_path, [LONG, SHORT])
    assert endings[0].startswith("left out: ") and endings[1] == "'one'"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ('{"Frage": "a", "Antwort": "b"}\n', "its only row cannot be used: unknown format"),
        ("", "no row in it"),
        ('{"train": [{"a": 1}], "test": [{"a": 1}]}', "set the source's `field: train` or"),
    ],
)
def test_dry_run_refuses_sources_without_a_row_to_use(
    tmp_path: Path, pocket_base: str, rows: str, reason: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(rows)
    data = {"sources": [str(tmp_path / "rows.jsonl")], "row_tokens": 64}
    recipe = parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": data})
    with pytest.raises(UserError, match=reason):
        list(dry_run(Inputs(recipe), Store(tmp_path / "store")))
