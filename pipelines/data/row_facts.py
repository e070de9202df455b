"""Facts of rows that people should know, counted over a dataset.

They are keys that nothing reads, text of chat templates in messages, and parts of conversations
that the base's template shows only after a fallback.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.chat import ChatRenderer
from pipelines.core.conversation import Conversation
from pipelines.data.convert.row_checks import enters_loss
from pipelines.data.convert.template_text import TemplateText
from pipelines.data.read.raw_row import printable

UNUSED_KEYS, TYPED_ENDS, TYPED_TEMPLATES, FALLBACKS = KINDS = (
    "unused_keys", "typed_ends", "typed_templates", "fallbacks",
)  # fmt: skip
"""The kinds of facts, by their names in the manifest."""
_USED_OPTIONS = "used_options"  # of sources; only those without a use are named

_MAX_NAMES = 1000  # of a kind; rows whose keys are data have as many keys as they like
_OTHERS = "(others)"
_FACT, _NAME = "\x1e", "\x1f"


class RowFacts:
    """Writes the facts of a row as one text, for the column `facts` of tokenized_table.SCHEMA."""

    def __init__(self, renderer: ChatRenderer) -> None:
        self._text = TemplateText(renderer)
        shown = renderer.capabilities
        self._fitted_roles = {
            role: name
            for role, name, is_shown in (
                ("system", "system texts", shown.system),
                ("tool", "tool results", shown.tool_role),
            )
            if not is_shown
        }
        self._fits_tools, self._fits_calls = not shown.tools, not shown.tool_calls

    def of(self, conversation: Conversation, used_options: Sequence[str] = ()) -> str | None:
        """The facts of a conversation, and the options of its source that it uses; None without."""
        facts = _joined_keys(conversation.unused_keys) if conversation.unused_keys else ""
        for option in used_options:
            facts += _fact(_USED_OPTIONS, option)
        if self._fits_tools and conversation.tools:
            facts += _fact(FALLBACKS, "tools")
        text, end, template, fitted = self._text, None, None, set[str]()
        for turn in conversation.turns:
            role, content = turn.role, turn.content
            if role == "assistant":
                own_end, own_start = text.end_of(content), text.at_start_of(content)
                if (own_end or own_start) and enters_loss(turn):
                    end, template = end or own_end, template or own_start
                if self._fits_calls and turn.tool_calls:
                    fitted.add("tool calls")
                continue
            if role == "text":
                end = text.end_of(content)
            template = template or (
                text.around_result(content) if role == "tool" else text.anywhere_in(content)
            )
            if role in self._fitted_roles:
                fitted.add(self._fitted_roles[role])
        if end:
            facts += _fact(TYPED_ENDS, end)
        if template:
            facts += _fact(TYPED_TEMPLATES, template)
        if fitted:
            facts += "".join(_fact(FALLBACKS, name) for name in sorted(fitted))
        return facts or None


class FactCounts:
    """Counts the rows of each fact, and remembers the first row."""

    def __init__(self) -> None:
        self._rows = {kind: Counter[str]() for kind in (*KINDS, _USED_OPTIONS)}
        self._first: dict[tuple[str, str], str] = {}

    def add(self, table: pa.Table, origin: Callable[[int, int], str]) -> None:
        """Count the rows, without pieces of rows, of a table of tokenized_table.SCHEMA.

        `origin` names the file and line of a chunk's row.
        """
        column = table["facts"]
        if column.null_count == len(column):
            return
        is_row = pa.array(table["piece"].to_numpy() == 0)
        rows = table.select(["facts", "chunk", "row"]).filter(is_row)
        column = rows["facts"].combine_chunks()
        for counted in column.value_counts().to_pylist():
            if counted["values"] is None:
                continue
            first = int(pc.index(column, counted["values"]).as_py())
            for fact in counted["values"].split(_FACT)[1:]:
                kind, name = fact.split(_NAME)
                names = self._rows[kind]
                name = name if name in names or len(names) < _MAX_NAMES else _OTHERS
                names[name] += counted["counts"]
                if (kind, name) not in self._first:
                    row = rows.slice(first, 1).to_pylist()[0]
                    self._first[kind, name] = origin(row["chunk"], row["row"])

    def without_use(self, options: Sequence[str]) -> list[str]:
        """Those of the options of a source that no row uses."""
        used = self._rows[_USED_OPTIONS]
        return [option for option in options if used[_printable(option)] == 0]

    def manifest(self) -> dict[str, Any]:
        """For each kind the rows of each name, most frequent first, and `first_rows`: file:line."""
        return {kind: dict(self._rows[kind].most_common()) for kind in KINDS} | {
            "first_rows": {
                kind: {name: self._first[kind, name] for name in self._rows[kind]}
                for kind in KINDS
                if self._rows[kind]
            }
        }


def has_fact(table: pa.Table, kind: str) -> np.ndarray:
    """Whether each row of a table of tokenized_table.SCHEMA has a fact of a kind, bool [N]."""
    column = table["facts"]
    if column.null_count == len(column):
        return np.zeros(len(column), bool)
    encoded = column.combine_chunks().fill_null("").dictionary_encode()
    has = [f"{_FACT}{kind}{_NAME}" in facts for facts in encoded.dictionary.to_pylist()]
    return np.array(has, bool)[encoded.indices.to_numpy()]


@functools.lru_cache(maxsize=4096)  # nearly all rows of a file have the same keys
def _joined_keys(keys: tuple[str, ...]) -> str:
    return "".join(_fact(UNUSED_KEYS, key) for key in dict.fromkeys(keys))


def _fact(kind: str, name: str) -> str:
    return f"{_FACT}{kind}{_NAME}{_printable(name)}"


def _printable(name: str) -> str:
    return printable(name).replace(_FACT, " ").replace(_NAME, " ")
