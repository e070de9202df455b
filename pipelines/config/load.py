"""Recipe files: read, overridden, with paths that no longer depend on where the file is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.config.errors import Problem, RecipeError
from pipelines.config.peers import peer_of
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.config.schema import BUILT_IN_TEMPLATES
from pipelines.config.yaml_lines import KeyPath, Position, YamlDocument, parse_yaml
from pipelines.core.errors import UserError, one_line
from pipelines.storage import nearest_path, without_links


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.key=value` overrides (values in YAML).

    Raises UserError for a file that cannot be read, and RecipeError for a recipe with problems:
    another tool's file, bad YAML, unknown keys, wrong values, or keys that contradict each
    other. All problems are reported at once, with lines.
    """
    path = Path(path)
    document = _read(path)
    data = document.data
    _resolve_paths(data, path.parent)
    given: dict[str, Any] = {}
    for override in overrides:
        _apply_override(given, override)

    def locate(key: KeyPath) -> Position | None:
        return None if _is_given(given, key) else document.position(key)

    _resolve_paths(given, Path.cwd())
    origin = " ".join([str(path), *(f"-s {override}" for override in overrides)])
    return parse_recipe(_merged(data, given), origin, locate)


def _read(path: Path) -> YamlDocument:
    """The file's document, whose data is a mapping that may be a recipe."""
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = None if path.exists() else nearest_path(path)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"{path}: cannot read the recipe ({error.strerror}){hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: not UTF-8 text ({error.reason})") from error
    except yaml.YAMLError as error:
        raise RecipeError(str(path), [_yaml_problem(error)]) from error
    if not isinstance(document.data, dict):
        given = "nothing" if document.data is None else f"a {type(document.data).__name__}"
        raise UserError(f"{path}: a recipe is a mapping of sections, and this file has {given}")
    if peer := peer_of(document.data, set(Recipe.model_fields)):
        raise UserError(f"{path}: {peer}")
    if document.duplicates:
        raise RecipeError(str(path), [Problem("", twice) for twice in document.duplicates])
    return document


def _yaml_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return Problem("", f"not valid YAML: {' '.join(str(error).split())}")
    reason = one_line(getattr(error, "problem", None) or error)
    return Problem("", f"not valid YAML: {reason}", Position(mark.line + 1, mark.column + 1))


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"-s {override}: expected section.key=value, for example -s lora.r=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"-s {override}: the value is not valid YAML") from error
    *sections, last = key.strip().split(".")
    section: Any = data
    for name in sections:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise UserError(f"-s {override}: {name!r} is not a section")
    section[last] = value


def _is_given(given: Any, key: KeyPath) -> bool:
    """True if the value of a key comes from an override, which replaces everything but sections."""
    for part in key:
        if not isinstance(given, dict):
            return True
        if part not in given:
            return False
        given = given[part]
    return True


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{k: _merged(base.get(k), v) for k, v in over.items()}}
    return over


def _resolve_paths(data: dict[str, Any], folder: Path) -> None:
    """Make the paths of the base, the sources, the benchmarks and the chat template absolute; they
    are relative to `folder`.
    """
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("base"), str):
        base = model["base"]
        # A Hub id such as org/name looks like a path; it is a path if that folder exists.
        if base.startswith((".", "/", "~")) or (base and (folder / base).is_dir()):
            model["base"] = _absolute(base, folder)
    section = data.get("data")
    if isinstance(section, dict) and "sources" in section:
        sources = section["sources"]
        sources = [sources] if isinstance(sources, str) else sources
        if isinstance(sources, list):
            section["sources"] = [_source(source, folder) for source in sources]
    if isinstance(section, dict) and isinstance(section.get("chat_template"), str):
        section["chat_template"] = _template(section["chat_template"], folder)
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


def _template(given: str, folder: Path) -> str:
    """The path of a template file; a built-in name, or a template in place of a path, as it is."""
    if given in BUILT_IN_TEMPLATES or "{" in given or not given.strip():
        return given
    return _absolute(given, folder)


def _absolute(path: str, folder: Path) -> str:
    if "://" in path:
        return path
    return str(without_links(folder / Path(path).expanduser()))
