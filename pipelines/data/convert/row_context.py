"""State of one row while it is converted: its roles, its tools and the keys that were not used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class RowContext:
    """What the parts of a converter share about one row.

    `roles` maps role names to user, assistant, system or tool. `from_table` says that the row came
    from Arrow, which fills absent fields with null. `unused` has the keys, with their paths, that
    no converter read.
    """

    __slots__ = ("from_table", "roles", "tools", "unused")

    def __init__(self, roles: Mapping[str, str], from_table: bool) -> None:
        self.roles = roles
        self.from_table = from_table
        self.tools: tuple[Mapping[str, Any], ...] = ()
        self.unused: dict[str, None] = {}  # a set that keeps the order

    def note_unused(self, path: str, values: Mapping[str, Any]) -> None:
        """Add the keys of an object that has no other use, unless their values are empty."""
        for key, value in values.items():
            if not is_blank(value):
                self.unused[f"{path}.{key}"] = None

    def properties(self, name: str) -> Mapping[str, Any] | None:
        """The arguments that the schema of a tool lists, or None without such a schema."""
        for tool in self.tools:
            function = tool["function"]
            if function["name"] == name:
                parameters = function.get("parameters")
                if isinstance(parameters, Mapping):
                    properties = parameters.get("properties")
                    return properties if isinstance(properties, Mapping) else None
        return None


def is_blank(value: Any) -> bool:
    """True for a value that says nothing: null, NaN, and texts and containers without content."""
    if value is None or isinstance(value, bool):
        return value is None
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(is_blank, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_blank, value))
    return isinstance(value, float) and math.isnan(value)
