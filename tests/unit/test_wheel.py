"""The wheel has everything that a run needs: recipes, the pocket model, the schema."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from jobs.cluster import staging
from pipelines.config.load import load_recipe
from pipelines.config.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel is packed from."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", target / "base"]
    subprocess.run(
        [*command, "--build-lib", target / "lib"], cwd=ROOT, check=True, capture_output=True
    )
    return target / "lib"


def test_the_wheel_has_every_recipe_and_the_files_that_ship_with_it(built: Path) -> None:
    recipes = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))
    shipped = built / "pipelines" / "_shipped"
    assert recipes == sorted(path.name for path in (shipped / "recipes").iterdir())
    for name in recipes:
        recipe, original = (
            load_recipe(shipped / "recipes" / name),
            load_recipe(ROOT / "recipes" / name),
        )
        pairs = zip(local_paths(recipe), local_paths(original), strict=True)
        for path, in_repository in pairs:
            if in_repository.exists():
                assert path.exists() and path.is_relative_to(shipped), f"{name}: {path}"


def local_paths(recipe: Recipe) -> list[Path]:
    """A recipe's base and source files, where they are paths."""
    return [Path(recipe.model.base), *(Path(source.path) for source in recipe.data.sources)]


def test_the_wheel_has_the_code_and_the_data_files_next_to_it(built: Path) -> None:
    for path in (
        "jobs/cli.py",
        "jobs/cluster/on_cluster.sh",
        "pipelines/config/recipe.schema.json",
        "serve_app/__init__.py",
    ):
        assert (built / path).read_bytes() == (ROOT / path).read_bytes()


def test_the_wheel_leaves_out_how_the_pocket_model_was_made(built: Path) -> None:
    pocket = built / "pipelines" / "_shipped" / "assets" / "pocket"
    assert (pocket / "model" / "model.safetensors").is_file()
    assert not [*pocket.rglob("*.py"), *pocket.rglob("*.png"), *pocket.rglob("train_log*")]
    assert not (built / "tests").exists() and not (built / "bench").exists()


def test_a_job_uploads_the_same_code_from_a_wheel_as_from_the_repository(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uploaded() -> dict[str, bytes]:
        files = (pair for package in staging.PACKAGES for pair in staging._package_files(package))
        return {target: path.read_bytes() for target, path in files}

    from_repository = uploaded()
    monkeypatch.setattr(
        staging.importlib.util, "find_spec", lambda name: PathFinder.find_spec(name, [str(built)])
    )
    assert uploaded() == from_repository
