"""The keys of each row format: how a row's format is detected and how `columns` maps other keys.

Imports nothing heavy, so that a recipe's `columns` can be checked before any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.core.errors import UserError
from pipelines.data.convert.row_error import RowError

Row = Mapping[str, Any]
FORMAT_KEYS: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "sharegpt": frozenset({"conversations"}),
    "prompt_completion": frozenset({"prompt", "completion"}),
    "alpaca": frozenset({"instruction", "output"}),
    "question_answer": frozenset({"question", "answer"}),
}
OPTIONAL_KEYS = frozenset({"input", "system", "history", "tools", "functions"})


def detect_format(row: Row, mapped: Mapping[str, str] | None = None) -> str:
    """The format whose keys a row has.

    If several fit, the one with the most `mapped` keys is preferred, then one without null values.
    Raises RowError naming the row's keys when none fits.
    """
    fitting = [name for name, keys in FORMAT_KEYS.items() if keys <= row.keys()]
    if len(fitting) > 1:
        # Tables have null where a row lacks a column.
        fitting.sort(
            key=lambda name: (
                -len(FORMAT_KEYS[name] & (mapped or {}).keys()),
                any(row[k] is None for k in FORMAT_KEYS[name]),
            )
        )
    if fitting:
        return fitting[0]
    valid = "; ".join(f"{name} ({', '.join(sorted(keys))})" for name, keys in FORMAT_KEYS.items())
    raise RowError(
        f"unknown format: the row has the keys {_keys_of(row)}; known: {valid}; for others set the "
        "source's `columns`"
    )


def check_columns(maps: Sequence[Mapping[str, str]]) -> None:
    """Raise UserError for a key in a source's `columns` that no format has."""
    valid = sorted(OPTIONAL_KEYS.union(*FORMAT_KEYS.values()))
    for i, columns in enumerate(maps):
        for key in columns:
            if key not in valid:
                raise UserError(
                    f"data.sources.{i}.columns: no format has the key {key}; valid: "
                    f"{', '.join(valid)}"
                )


def map_columns(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the values of mapped columns under the format's own keys.

    Raises RowError when the row lacks a column of a required key.
    """
    for key, column in columns.items():
        if column not in row and key not in OPTIONAL_KEYS:
            raise RowError(f"columns: the row has no {column} for {key}, but {_keys_of(row)}")
    return {**row, **{key: row[column] for key, column in columns.items() if column in row}}


def _keys_of(row: Row) -> str:
    return ", ".join(map(str, row)) or "(none)"
