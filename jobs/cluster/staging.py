"""The folder that is uploaded with a job: code, recipe, and the local files that it names."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.chat.default_templates import chosen_template
from pipelines.config.recipe import Recipe, with_paths
from pipelines.config.schema import BUILT_IN_TEMPLATES
from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError
from pipelines.sources.source_files import files_at
from pipelines.storage import sha256_file

PACKAGES = ("pipelines", "jobs", "serve_app")
RECIPE_FILE = "recipe.yaml"
MAX_BYTES = 50_000_000  # Ray itself refuses above 100 MB, after the upload has begun
_SKIPPED = {"__pycache__", "_shipped"}  # _shipped: only in a wheel; a job reads none of it


@dataclass(frozen=True)
class Staged:
    """Files to upload (target -> source) and the recipe, whose local paths name the targets."""

    recipe: Recipe
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    @property
    def digest(self) -> str:
        """Hex sha256 of all uploaded content: code, recipe, data and base.

        Where uploaded files lie on this machine does not matter; their names, and the paths of
        files that are not uploaded, do.
        """
        contents = {target: sha256_file(path) for target, path in self.files.items()}
        return digest_of({"files": contents, "recipe": self.recipe.model_dump(mode="json")})

    def write(self, folder: Path) -> None:
        """Copy everything into an empty folder."""
        for target, path in self.files.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / target)
        (folder / RECIPE_FILE).write_text(self.recipe.to_yaml())


def stage_files(recipe: Recipe, shared: Sequence[Path] = ()) -> Staged:
    """Decide what is uploaded. Paths below a `shared` folder, URIs and Hub ids stay as they are.

    Raises UserError for a missing file, and above `MAX_BYTES`, naming the five largest files.
    """
    files: dict[str, Path] = {}
    for package in PACKAGES:
        files |= dict(_package_files(package))
    moved: dict[str, str] = {}
    named = [
        (f"data/{i}", source.path, f"data.sources.{i}.path")
        for i, source in enumerate(recipe.data.sources)
    ]
    named += [
        (f"benchmarks/{i}", path, f"data.benchmarks.{i}")
        for i, path in enumerate(recipe.data.benchmarks)
    ]
    for folder, path, key in named:
        if path in moved or _stays(path, shared):
            continue
        paths = [Path(file.path) for file in files_at(path, key)]
        files |= {f"{folder}/{index:05d}-{file.name}": file for index, file in enumerate(paths)}
        moved[path] = f"./{folder}"
    template = recipe.data.chat_template
    if template and template not in BUILT_IN_TEMPLATES and not _stays(template, shared):
        chosen_template(recipe.data)  # a missing file shows before anything is sent
        files[f"chat_template/{Path(template).name}"] = Path(template)
        moved[template] = f"./chat_template/{Path(template).name}"
    base = Path(recipe.model.base)
    if base.is_dir() and not _stays(recipe.model.base, shared):
        named_templates = base.glob("additional_chat_templates/*.jinja")
        files |= {
            f"base/{path.relative_to(base).as_posix()}": path
            for path in sorted([*base.iterdir(), *named_templates])
            if path.is_file()
        }
        moved[recipe.model.base] = "./base"
    staged = Staged(with_paths(recipe, lambda path: moved.get(path, path)), files)
    _check_size(staged)
    return staged


def _package_files(package: str) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(root.rglob("*")):
        if path.is_file() and not _SKIPPED & set(path.parts):
            yield f"{package}/{path.relative_to(root).as_posix()}", path


def _stays(path: str, shared: Sequence[Path]) -> bool:
    return "://" in path or any(
        Path(os.path.realpath(path)).is_relative_to(folder.expanduser().resolve())
        for folder in shared
    )


def _check_size(staged: Staged) -> None:
    if staged.num_bytes <= MAX_BYTES:
        return
    largest = sorted(staged.files.values(), key=lambda path: path.stat().st_size, reverse=True)[:5]
    named = ", ".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in largest)
    raise UserError(
        f"the job's upload has {staged.num_bytes / 1e6:.1f} MB, the limit is "
        f"{MAX_BYTES / 1e6:.0f} MB; largest: {named}; put large files where every node sees them "
        "and give that folder with --shared, or use a Hub id for model.base"
    )
