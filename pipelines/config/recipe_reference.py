"""Every key of a recipe with its type, default, bounds and description, read from the schema.

docs/recipe.md, recipe.schema.json, `loraforge explain` and `loraforge schema` are made from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipelines.config.errors import is_section
from pipelines.config.recipe import Recipe

SCHEMA_FILE = "recipe.schema.json"
_TYPE_NAMES = {int: "integer", float: "number", str: "string", bool: "true or false"}
_PLURALS = {int: "integers", float: "numbers", str: "strings"}
_COMPARISONS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
# Defaults that a validator of the recipe fills in.
_FILLED_DEFAULTS = {"registry.model": "the recipe's name"}
_SHORT_FORMS = {"data.sources": "path, or list of paths and entries"}
_HEAD = """# Every key of a recipe

    loraforge init --data rows.jsonl      write a recipe for these rows and this machine
    loraforge validate recipe.yaml        check it: all problems at once, with their lines
    loraforge explain train               the keys of a section, in the terminal
    loraforge run recipe.yaml -s lora.r=8 change a key for one run
    loraforge schema                      the JSON schema, for editors

A recipe is a YAML file of sections. `name`, `model.base` and `data.sources` are required; every
other key has a default. Paths are relative to the recipe. "Empty" is a key without a value or null.

This page is generated from the schema in `pipelines/config/schema`. After a change there, run
`{command}`.
"""
REGENERATE = "python -m pipelines.config.recipe_reference"


@dataclass(frozen=True)
class Key:
    """One key. `name` is dotted; `default` is empty for a required key; `bounds` may be empty."""

    name: str
    type: str
    default: str
    bounds: str
    description: str


@dataclass(frozen=True)
class SectionReference:
    """A section with its keys; `name` is dotted, and empty for the keys outside of sections."""

    name: str
    description: str
    keys: tuple[Key, ...]


def sections() -> list[SectionReference]:
    """Every section in the order of the schema, sections inside a section right after it."""
    return list(_sections("", Recipe))


def reference_markdown() -> str:
    """The text of docs/recipe.md: one table for each section."""
    parts = [_HEAD.format(command=REGENERATE)]
    for section in sections():
        parts.append(f"\n## {section.name or 'Outside of sections'}\n\n{section.description}\n\n")
        parts.append("| key | type | default | bounds | meaning |\n|---|---|---|---|---|\n")
        for key in section.keys:
            default = f"`{key.default}`" if key.default else "required"
            default = key.default if key.name in _FILLED_DEFAULTS else default
            bounds = f"`{key.bounds}`" if key.bounds else ""
            cells = (f"`{key.name}`", key.type, default, bounds, key.description)
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(parts)


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe file."""
    schema = Recipe.model_json_schema()
    _simplify(schema)
    definitions = schema["$defs"]
    # Short forms that validators of the recipe accept.
    schema["required"].remove("registry")
    definitions["RegistryConfig"]["required"].remove("model")
    sources = definitions["DataConfig"]["properties"]["sources"]
    entry = {"anyOf": [{"type": "string"}, sources["items"]]}
    description = sources.pop("description")
    listed = sources | {"items": entry}
    definitions["DataConfig"]["properties"]["sources"] = {
        "anyOf": [{"type": "string"}, listed],
        "description": description,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Loraforge recipe",
        **schema,
    }


def json_schema_text() -> str:
    """The text of recipe.schema.json."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def _sections(name: str, model: type[BaseModel]) -> Iterator[SectionReference]:
    inner = {key: _section_of(field.annotation) for key, field in model.model_fields.items()}
    prefix = f"{name}." if name else ""
    # A list of sections is a key of its own; a plain section is only the keys below it.
    keys = [
        _key(f"{prefix}{key}", field)
        for key, field in model.model_fields.items()
        if not is_section(field.annotation)
    ]
    yield SectionReference(name, _text(model.__doc__), tuple(keys))
    for key, section in inner.items():
        if section:
            yield from _sections(f"{prefix}{key}", section)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if is_section(kind)), None)


def _key(name: str, field: FieldInfo) -> Key:
    default = _FILLED_DEFAULTS.get(name) or _default(field)
    kind = _SHORT_FORMS.get(name) or _type(field.annotation)
    return Key(name, kind, default, _bounds(field), _text(field.description))


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


def _type(annotation: Any) -> str:
    """An annotation in words: `int | list[int]` is "integer or list of integers"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join("empty" if kind is type(None) else _type(kind) for kind in inner)
    if origin is list:
        return "list of " + (_PLURALS.get(inner[0]) or _type(inner[0]))
    if origin is dict:
        return f"mapping of {_PLURALS[inner[0]]} to {_PLURALS.get(inner[1]) or _type(inner[1])}"
    return _TYPE_NAMES[annotation]


def _default(field: FieldInfo) -> str:
    """The default as YAML writes it; empty for a required key."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    if value is None:
        return "empty"
    return value if isinstance(value, str) and value else json.dumps(value)


def _bounds(field: FieldInfo) -> str:
    bounds = []
    for rule in field.metadata:
        for attribute, sign in _COMPARISONS.items():
            if (limit := getattr(rule, attribute, None)) is not None:
                bounds.append(f"{sign} {limit}")
        if (length := getattr(rule, "min_length", None)) is not None:
            bounds.append(f"at least {length}")
        if pattern := getattr(rule, "pattern", None):
            bounds.append(pattern)
    return ", ".join(bounds)


def _simplify(schema: Any) -> None:
    """Delete titles that repeat the key, defaults that repeat a section, and line breaks."""
    for value in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(value, dict | list):
            _simplify(value)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("title"), str):
        del schema["title"]
    if "$ref" in schema:
        schema.pop("default", None)
    if isinstance(schema.get("description"), str):
        schema["description"] = _text(schema["description"])


def main() -> None:
    """Rebuild docs/recipe.md and recipe.schema.json in a checkout."""
    from pathlib import Path

    here = Path(__file__).resolve().parent
    (here / SCHEMA_FILE).write_text(json_schema_text())
    (here.parents[1] / "docs" / "recipe.md").write_text(reference_markdown())


if __name__ == "__main__":
    main()
