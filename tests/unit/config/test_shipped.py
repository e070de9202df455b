"""Shipped recipes: found in a checkout and in a wheel, and copies of them work where they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.config import shipped
from pipelines.config.load import load_recipe
from pipelines.core.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def as_wheel(folder: Path) -> Path:
    """The layout of the package in a wheel, with one recipe and its files; returns the package."""
    package = folder / "site-packages" / "pipelines"
    names = ("recipes/pocket_lora_order_cpu.yaml", "assets/pocket/model/config.json")
    names += tuple(f"assets/pocket/tasks/order_{split}.jsonl" for split in ("train", "heldout"))
    for name in names:
        (package / "_shipped" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, package / "_shipped" / name)
    (package / "config").mkdir()
    shutil.copy(ROOT / "pipelines/config/recipe.schema.json", package / "config")
    (folder / "site-packages" / "recipes").mkdir()  # of another distribution
    return package


def test_a_checkout_uses_its_own_recipes_and_pocket_base() -> None:
    assert shipped.recipes_dir() == ROOT / "recipes"
    assert shipped.pocket_dir() == ROOT / "assets" / "pocket"
    assert (shipped.pocket_dir() / "model" / "config.json").is_file()
    assert set(shipped.shipped_recipes()) == {p.stem for p in (ROOT / "recipes").glob("*.yaml")}


def test_a_wheel_uses_the_copies_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = as_wheel(tmp_path)
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    recipe = load_recipe(shipped.shipped_recipe("pocket_lora_order_cpu"))
    assert recipe.model.base == str(package / "_shipped/assets/pocket/model")
    assert [Path(source.path).is_file() for source in recipe.data.sources] == [True, True]


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "recipes").glob("*.yaml")))
def test_a_copy_is_the_same_recipe_wherever_it_is(name: str, tmp_path: Path) -> None:
    original = shipped.shipped_recipe(name)
    expected = load_recipe(original)
    target = tmp_path / "deep" / "er" / "mine.yaml"
    target.parent.mkdir(parents=True)
    target.write_text(shipped.copied_text(original, target))
    copy = load_recipe(target)
    assert copy.model == expected.model
    for source, wanted in zip(copy.data.sources, expected.data.sources, strict=True):
        if Path(wanted.path).exists():
            assert source == wanted
        else:  # the user's own rows: the same path, seen from the copy
            assert Path(source.path).is_relative_to(tmp_path)
    assert copy.train == expected.train and copy.lora == expected.lora


def test_a_copy_from_a_wheel_names_absolute_paths_and_its_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = as_wheel(tmp_path / "far" / "away" / "venv")
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    target = tmp_path / "some" / "other" / "work" / "mine.yaml"
    text = shipped.copied_text(shipped.shipped_recipe("pocket_lora_order_cpu"), target)
    assert text.startswith(f"# yaml-language-server: $schema={package}/config/recipe.schema.json\n")
    assert yaml.safe_load(text)["model"]["base"] == str(package / "_shipped/assets/pocket/model")


def test_a_copy_in_a_checkout_keeps_comments_and_relative_paths() -> None:
    original = shipped.shipped_recipe("pocket_lora_order_cpu")
    text = shipped.copied_text(original, ROOT / "mine.yaml")
    assert text.startswith("# yaml-language-server: $schema=pipelines/config/recipe.schema.json\n")
    assert yaml.safe_load(text)["model"]["base"] == "assets/pocket/model"
    unchanged = original.read_text().splitlines()[1:]
    assert [line for line in unchanged if "assets" not in line] == [
        line for line in text.splitlines()[1:] if "assets" not in line
    ]


def test_a_path_with_special_characters_stays_one_scalar(tmp_path: Path) -> None:
    folder = tmp_path / "a: b # c"
    folder.mkdir()
    (folder / "rows.jsonl").touch()
    recipe = folder / "r.yaml"
    recipe.write_text("name: a\nmodel: {base: org/b}\ndata: {sources: [rows.jsonl]} # mine\n")
    target = tmp_path / "x.yaml"
    target.write_text(shipped.copied_text(recipe, target))
    assert load_recipe(target).data.sources[0].path == str(folder / "rows.jsonl")
    assert target.read_text().endswith("# mine\n")


def test_an_unknown_recipe_comes_with_the_nearest_name() -> None:
    with pytest.raises(
        UserError, match="named pocket_lora_ordre_cpu; did you mean pocket_lora_order"
    ):
        shipped.shipped_recipe("pocket_lora_ordre_cpu")
    with pytest.raises(UserError, match="see `loraforge recipes ls`"):
        shipped.shipped_recipe("x")


def test_every_recipe_says_what_it_is_for() -> None:
    for path in shipped.shipped_recipes().values():
        assert len(shipped.summary_of(path)) > 20, path.name
