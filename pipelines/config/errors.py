"""Validation errors in words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """One clause for each key that is wrong, its name first; an unknown key comes with the nearest valid one."""
    clauses: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            clauses[".".join(str(part) for part in item["loc"])] = [_unknown(item["loc"], model)]
            continue
        where = _dotted(item["loc"], model)
        if item["type"] not in ("missing", "value_error"):
            inputs[where] = item.get("input")
        message = "Expected a section of keys" if item["type"] == "model_type" else item["msg"]
        clauses.setdefault(where, []).append(message.removeprefix("Value error, "))
    given = {where: f" (given: {value!r})" for where, value in inputs.items()}
    return "; ".join(
        f"{where}: {' or '.join(said)}{given.get(where, '')}" for where, said in clauses.items()
    )


def _unknown(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    *parents, last = (str(part) for part in loc)
    prefix = "".join(f"{part}." for part in parents)
    siblings = list(_fields(parents, model))
    elsewhere = [key for key in valid_keys(model) if key.rsplit(".", 1)[-1] == last]
    near = [prefix + key for key in difflib.get_close_matches(last, siblings, n=1)]
    near = elsewhere[:1] or near or difflib.get_close_matches(prefix + last, valid_keys(model), n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; valid here: {', '.join(siblings)}"


def _dotted(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """A place in the recipe without the names that pydantic adds for each alternative of a union."""
    parts: list[str] = []
    for part in loc:
        if not isinstance(part, int) and part not in _fields(parts, model):
            break
        parts.append(str(part))
    return ".".join(parts) or "recipe"


def _fields(parents: Sequence[str], model: type[BaseModel]) -> Mapping[str, Any]:
    """The fields of the section at a place; empty where there is none."""
    section: Any = model
    for part in parents:
        if part.isdigit():
            continue
        field = section.model_fields.get(part) if _is_section(section) else None
        inner = field.annotation if field else None
        section = next((t for t in (inner, *get_args(inner)) if _is_section(t)), None)
    return section.model_fields if _is_section(section) else {}


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def valid_keys(model: type[BaseModel]) -> list[str]:
    """Every key of a model of sections, dotted; those of a list's entries without a number."""
    keys = []
    for name in model.model_fields:
        keys.append(name)
        for key in _fields([name], model):
            keys.append(f"{name}.{key}")
            keys += [f"{name}.{key}.{inner}" for inner in _fields([name, key], model)]
    return keys
