"""Recipe files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.errors import UserError
from pipelines.storage import nearest_path


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.key=value` overrides (values in YAML).

    Raises UserError with one line for a missing file, bad YAML, an unknown key (naming the nearest valid one), a value
    of the wrong kind, or fields that contradict each other.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except OSError as error:
        near = None if path.exists() else nearest_path(path)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"{path}: cannot read the recipe ({error.strerror}){hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        held = "nothing" if data is None else type(data).__name__
        raise UserError(f"{path}: a recipe is a mapping of sections, this file holds {held}")
    _resolve_paths(data, path.parent)
    given: dict[str, Any] = {}
    for override in overrides:
        _apply_override(given, override)
    _resolve_paths(given, Path.cwd())
    return parse_recipe(
        _merged(data, given), " ".join([str(path), *(f"-s {override}" for override in overrides)])
    )


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"-s {override}: expected section.key=value, for example -s lora.r=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"-s {override}: the value is not valid YAML") from error
    *sections, last = key.strip().split(".")
    here: Any = data
    for section in sections:
        here = here.setdefault(section, {})
        if not isinstance(here, dict):
            raise UserError(f"-s {override}: {section!r} is not a section")
    here[last] = value


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{k: _merged(base.get(k), v) for k, v in over.items()}}
    return over


def _resolve_paths(data: dict[str, Any], folder: Path) -> None:
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("base"), str):
        base = model["base"]
        # A Hub id such as org/name looks like a path; it is one where that folder exists.
        if base.startswith((".", "/", "~")) or (base and (folder / base).is_dir()):
            model["base"] = _absolute(base, folder)
    section = data.get("data")
    if isinstance(section, dict) and "sources" in section:
        sources = section["sources"]
        sources = [sources] if isinstance(sources, str) else sources
        if isinstance(sources, list):
            section["sources"] = [_source(s, folder) for s in sources]
    if isinstance(section, dict) and isinstance(section.get("benchmarks"), list):
        section["benchmarks"] = [
            _absolute(p, folder) if isinstance(p, str) else p for p in section["benchmarks"]
        ]


def _source(source: Any, folder: Path) -> Any:
    if isinstance(source, str):
        return {"path": _absolute(source, folder)}
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        return {**source, "path": _absolute(source["path"], folder)}
    return source


def _absolute(path: str, folder: Path) -> str:
    if "://" in path:
        return path
    return str((folder.absolute() / Path(path).expanduser()).resolve())


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)
