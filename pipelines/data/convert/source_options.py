"""The entries of a source's `columns` and `roles`, and those that a row uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.config.schema import SourceConfig
from pipelines.data.convert.format_keys import opened
from pipelines.data.convert.tool_calls import decode_json_text


def options_of(source: SourceConfig) -> list[str]:
    """The entries of `columns` and `roles`, as `columns: {prompt: q}`."""
    columns = [f"columns: {{{key}: {column}}}" for key, column in source.columns.items()]
    return columns + [_role_option(name, role) for name, role in source.roles.items()]


def used_options(row: Any, source: SourceConfig) -> list[str]:
    """Those of `options_of` that a row has a column or a turn for."""
    if not isinstance(row, Mapping):
        return []
    row = opened(row, source.columns.values())
    used = [
        f"columns: {{{key}: {column}}}" for key, column in source.columns.items() if column in row
    ]
    if source.roles:
        names = {name for value in row.values() for name in _role_names(value)}
        used += [_role_option(name, role) for name, role in source.roles.items() if name in names]
    return used


def _role_option(name: str, role: str) -> str:
    return f"roles: {{{name}: {role}}}"


def _role_names(value: Any) -> Iterator[str]:
    """The names of roles in a value that is a list of turns, or keys that may be such names."""
    turns = decode_json_text(value)
    if isinstance(turns, Mapping):
        yield from (
            name
            for names in turns.values()
            if isinstance(names, list)
            for name in names
            if isinstance(name, str)
        )
    elif isinstance(turns, list):
        for turn in turns:
            if isinstance(turn, Mapping):
                name = turn.get("role") or turn.get("from")
                yield from [name] if isinstance(name, str) else map(str, turn)
