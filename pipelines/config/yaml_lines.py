"""YAML text as plain data, with the line and column of every key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str, ...]
"""The position of a value: the keys above it and its own; a list entry's key is its number."""


@dataclass(frozen=True)
class Position:
    """Line and column of a key, both from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class YamlDocument:
    """The data of one document, where its keys are, and which keys are given twice, in words."""

    data: Any = None
    positions: Mapping[KeyPath, Position] = field(default_factory=dict)
    duplicates: tuple[str, ...] = ()

    def position(self, path: KeyPath) -> Position | None:
        """The position of a key, or of the nearest key above it that the text has."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path)


def parse_yaml(text: str) -> YamlDocument:
    """Read one document of plain values. Raises yaml.YAMLError."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlDocument()
        duplicates: list[str] = []
        positions = dict(_positions(node, (), duplicates, set()))
        # Plain YAML keeps the last of two equal keys without a word.
        return YamlDocument(loader.construct_document(node), positions, tuple(duplicates))
    finally:
        loader.dispose()


def _positions(
    node: yaml.Node, path: KeyPath, duplicates: list[str], visited: set[int]
) -> Iterator[tuple[KeyPath, Position]]:
    """Every key below a node. An alias is visited once, so a document that nests aliases stays
    cheap.
    """
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, list[int]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            lines.setdefault(key.value, []).append(key.start_mark.line + 1)
            yield (*path, key.value), _position(key)
            yield from _positions(value, (*path, key.value), duplicates, visited)
        for name, numbers in lines.items():
            if len(numbers) > 1:
                duplicates.append(_twice(name, numbers))
    elif isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            yield (*path, str(number)), _position(entry)
            yield from _positions(entry, (*path, str(number)), duplicates, visited)


def _position(node: yaml.Node) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)


def _twice(name: str, lines: list[int]) -> str:
    numbers = sorted(set(lines))
    if len(numbers) == 1:
        return f"the key {name!r} is given twice (line {numbers[0]})"
    listed = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    return f"the key {name!r} is given {_times(len(lines))} (lines {listed})"


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"
