"""Errors of a recipe: every wrong key with its name, its line, what was given and what to set."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipelines.config.peers import translation
from pipelines.config.yaml_lines import KeyPath, Position
from pipelines.core.errors import UserError

Locate = Callable[[KeyPath], Position | None]
_DOTTED = re.compile(r"\b[a-z]+(?:\.[a-z_]+)+\b")


@dataclass(frozen=True)
class Problem:
    """One wrong key of a recipe; `key` is empty where several keys contradict each other."""

    key: str
    message: str
    position: Position | None = None

    def __str__(self) -> str:
        line = f"line {self.position.line}" if self.position else ""
        if not self.key:
            return f"{line}: {self.message}" if line else self.message
        return f"{self.key} ({line}): {self.message}" if line else f"{self.key}: {self.message}"


class RecipeError(UserError):
    """A recipe with problems. The text is one line, `ORIGIN: PROBLEM; PROBLEM`; `problems` has them
    one by one.
    """

    def __init__(self, origin: str, problems: Sequence[Problem]) -> None:
        super().__init__(origin, problems)
        self.origin, self.problems = origin, tuple(problems)

    def __str__(self) -> str:
        return f"{self.origin}: " + "; ".join(map(str, self.problems))


class Contradictions(ValueError):
    """Keys that are valid alone and not together: one line for each pair."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)


def problems_of(
    error: ValidationError, model: type[BaseModel], locate: Locate = lambda path: None
) -> list[Problem]:
    """Every problem of a failed validation, in the order of the file's lines; those without a line
    come last.

    An unknown key comes with its name here if it is another tool's word, else with the nearest
    valid key. `locate` gives the position of a key in the recipe's file, and None for a key from
    elsewhere.
    """
    problems: dict[str, Problem] = {}
    inputs: dict[str, Any] = {}
    for item in error.errors():
        path = _key_path(item["loc"], model)
        key = ".".join(path)
        if item["type"] == "extra_forbidden":
            path = tuple(map(str, item["loc"]))
            key, message = ".".join(path), _unknown(path, item.get("input"), model)
            problems[key] = Problem(key, message, locate(path))
            continue
        if not path:
            for line in _contradictions(item):
                problems[line] = Problem("", line, _first_position(line, locate))
            continue
        if item["type"] not in ("missing", "value_error"):
            inputs[key] = item.get("input")
        message = "Expected a section of keys" if item["type"] == "model_type" else item["msg"]
        message = message.removeprefix("Value error, ")
        if earlier := problems.get(key):  # one message for each alternative of a union
            message = f"{earlier.message} or {message}"
        problems[key] = Problem(key, message, locate(path))
    for key, value in inputs.items():
        problem = problems[key]
        problems[key] = replace(problem, message=f"{problem.message} (given: {value!r})")
    return sorted(problems.values(), key=_line)


def _line(problem: Problem) -> float:
    return problem.position.line if problem.position else math.inf


def _contradictions(item: Mapping[str, Any]) -> Sequence[str]:
    raised = item.get("ctx", {}).get("error")
    if isinstance(raised, Contradictions):
        return raised.lines
    return [item["msg"].removeprefix("Value error, ")]


def _first_position(message: str, locate: Locate) -> Position | None:
    """The position of the first key that a message names and the file holds."""
    positions = (locate(tuple(key.split("."))) for key in _DOTTED.findall(message))
    return next((position for position in positions if position), None)


def _unknown(path: KeyPath, value: Any, model: type[BaseModel]) -> str:
    *parents, last = path
    if advice := translation(last, value):
        return f"unknown key; {advice}"
    if "." in last and last in valid_keys(model):
        section, _, key = last.partition(".")
        return f"unknown key; write {key} below {section}, on a line of its own"
    prefix = "".join(f"{part}." for part in parents)
    siblings = list(_fields(parents, model))
    elsewhere = [key for key in valid_keys(model) if key.rsplit(".", 1)[-1] == last]
    near = [prefix + key for key in difflib.get_close_matches(last, siblings, n=1)]
    near = elsewhere[:1] or near or difflib.get_close_matches(prefix + last, valid_keys(model), n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; valid here: {', '.join(siblings)}"


def _key_path(location: Sequence[int | str], model: type[BaseModel]) -> KeyPath:
    """A location without the names that pydantic adds for each alternative of a union."""
    parts: list[str] = []
    for part in location:
        if not isinstance(part, int) and part not in _fields(parts, model):
            break
        parts.append(str(part))
    return tuple(parts)


def _fields(parents: Sequence[str], model: type[BaseModel]) -> Mapping[str, Any]:
    """The fields of the section below the keys `parents`; empty if there is no such section."""
    section: Any = model
    for part in parents:
        if part.isdigit():
            continue
        field = section.model_fields.get(part) if is_section(section) else None
        annotation = field.annotation if field else None
        kinds = (annotation, *get_args(annotation))
        section = next((kind for kind in kinds if is_section(kind)), None)
    return section.model_fields if is_section(section) else {}


def is_section(kind: Any) -> bool:
    """True if a type is a section, whose keys are written below its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def valid_keys(model: type[BaseModel]) -> list[str]:
    """Every key of a model of sections, dotted; keys of a list's entries come without a number."""
    keys = []
    for name in model.model_fields:
        keys.append(name)
        for key in _fields([name], model):
            keys.append(f"{name}.{key}")
            keys += [f"{name}.{key}.{inner}" for inner in _fields([name, key], model)]
    return keys
