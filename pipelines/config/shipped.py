"""The recipes and the pocket base that ship with the package, in a checkout and in a wheel.

In a checkout they are the repository's own `recipes/` and `assets/pocket/`. The build of a wheel
copies them to `pipelines/_shipped/` in the same layout, so that the recipes' relative paths hold in
both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from pipelines.core.errors import UserError
from pipelines.storage import nearest_path, without_links

_PACKAGE = Path(__file__).resolve().parents[1]
_SCHEMA_COMMENT = "# yaml-language-server: $schema="


def shipped_root() -> Path:
    """The folder with `recipes` and `assets/pocket`: a checkout, or the wheel's copy of them."""
    checkout = _PACKAGE.parent
    # A site-packages folder may hold a `recipes` of another package, but never our pyproject.toml.
    is_checkout = (checkout / "pyproject.toml").is_file() and (checkout / "recipes").is_dir()
    return checkout if is_checkout else _PACKAGE / "_shipped"


def recipes_dir() -> Path:
    """The folder with the shipped recipes."""
    return shipped_root() / "recipes"


def pocket_dir() -> Path:
    """The folder with the pocket base (`model`) and its tasks' rows (`tasks`)."""
    return shipped_root() / "assets" / "pocket"


def schema_path() -> Path:
    """The JSON schema of a recipe file, for editors."""
    return _PACKAGE / "config" / "recipe.schema.json"


def shipped_recipes() -> dict[str, Path]:
    """The shipped recipes by name, which is the file's name without .yaml."""
    return {path.stem: path for path in sorted(recipes_dir().glob("*.yaml"))}


def shipped_recipe(name: str) -> Path:
    """The file of a shipped recipe. Raises UserError with the nearest name for an unknown one."""
    recipes = shipped_recipes()
    name = name.removesuffix(".yaml")
    if name in recipes:
        return recipes[name]
    near = nearest_path(recipes_dir() / f"{name}.yaml")
    hint = f"did you mean {Path(near).stem}?" if near else "see `loraforge recipes ls`"
    raise UserError(f"no shipped recipe is named {name}; {hint}")


def summary_of(path: Path) -> str:
    """The first sentence of a recipe's own comment: what the recipe is for."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("# ")]
    text = " ".join(line for line in comments if not line.startswith("yaml-language-server"))
    return text.partition(". ")[0].rstrip(".")


def copied_text(recipe: Path, target: Path) -> str:
    """The text of a shipped recipe with paths that hold at `target`, comments included.

    Paths to files that ship with the recipe are rewritten, relative to `target` if both are in one
    checkout. A path to rows of the user's own, which do not ship, stays as it is.
    """
    text = recipe.read_text(encoding="utf-8")
    for node in sorted(_path_nodes(yaml.compose(text)), key=_start, reverse=True):
        path = (recipe.parent / node.value).resolve()
        if "://" not in node.value and path.exists():
            start, end = node.start_mark.index, node.end_mark.index
            text = text[:start] + yaml_on_one_line(path_from(target, path)) + text[end:]
    return with_schema_comment(text, target)


def with_schema_comment(text: str, target: Path) -> str:
    """The text with a first line that names the JSON schema for editors, true for `target`."""
    lines = [line for line in text.splitlines(True) if not line.startswith(_SCHEMA_COMMENT)]
    return f"{_SCHEMA_COMMENT}{path_from(target, schema_path())}\n" + "".join(lines)


def path_from(target: Path, path: Path) -> str:
    """The path that a recipe at `target` writes for `path`: relative in one tree, else absolute.

    A path that climbs further than two folders is absolute: it would break as soon as the recipe
    moves, and is hard to read.
    """
    full = without_links(path)
    relative = os.path.relpath(full, target.absolute().parent.resolve())
    return str(full) if relative.startswith(os.path.join("..", "..", "..")) else relative


def _path_nodes(document: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """The scalars that hold a path: model.base, the sources and the benchmarks."""
    base = _child(_child(document, "model"), "base")
    data = _child(document, "data")
    entries = [*_entries(_child(data, "sources")), *_entries(_child(data, "benchmarks"))]
    for node in (base, *entries):
        path = _child(node, "path") if isinstance(node, yaml.MappingNode) else node
        if isinstance(path, yaml.ScalarNode) and path.value:
            yield path


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _entries(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return [node] if node else []


def _start(node: yaml.Node) -> int:
    return node.start_mark.index


def yaml_on_one_line(value: object) -> str:
    """A text, a number or an object of them as YAML, quoted if needed."""
    dumped = yaml.safe_dump(
        value, default_flow_style=True, width=1 << 20, allow_unicode=True, sort_keys=False
    )
    return dumped.removesuffix("...\n").rstrip("\n")
