"""`loraforge recipes`: the shipped recipes are listed, shown, and copied so that they work."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.verbs.recipes import recipes
from pipelines.config.load import load_recipe
from pipelines.core.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def run_recipes(*arguments: str) -> str:
    done = CliRunner().invoke(recipes, list(arguments))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_ls_lists_every_shipped_recipe_with_its_purpose() -> None:
    lines = run_recipes("ls").splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


@pytest.mark.parametrize("name", ["pocket_lora_order_cpu", "pocket_lora_order_cpu.yaml"])
def test_show_prints_the_file(name: str) -> None:
    assert run_recipes("show", name) == (ROOT / "recipes/pocket_lora_order_cpu.yaml").read_text()


def test_cp_writes_a_recipe_that_works_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    original = load_recipe(ROOT / "recipes" / "pocket_lora_order_cpu.yaml")
    run_recipes("cp", "pocket_lora_order_cpu")
    assert load_recipe(tmp_path / "pocket_lora_order_cpu.yaml") == original
    (tmp_path / "folder").mkdir()
    output = run_recipes("cp", "pocket_lora_order_cpu", "folder")
    assert "loraforge validate folder/pocket_lora_order_cpu.yaml" in output
    assert load_recipe(tmp_path / "folder" / "pocket_lora_order_cpu.yaml") == original
    run_recipes("cp", "pocket_lora_order_cpu", "folder/mine.yaml")
    assert load_recipe(tmp_path / "folder" / "mine.yaml") == original


def test_cp_never_overwrites_a_file_without_force(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("mine")
    with pytest.raises(
        UserError, match="mine.yaml: exists already; choose another path, or add --f"
    ):
        run_recipes("cp", "pocket_lora_order_cpu", str(target))
    assert target.read_text() == "mine"
    run_recipes("cp", "pocket_lora_order_cpu", str(target), "--force")
    assert load_recipe(target).name == "pocket-order"


def test_cp_into_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        run_recipes("cp", "pocket_lora_order_cpu", str(tmp_path / "no" / "mine.yaml"))


@pytest.mark.parametrize("verb", ["show", "cp"])
def test_an_unknown_name_comes_with_the_nearest_one(verb: str) -> None:
    with pytest.raises(UserError, match="did you mean pocket_lora_order_cpu"):
        run_recipes(verb, "pocket_lora_oder_cpu")
