"""Problems and notes of a dataset about its rows: unused keys, text of templates, fallbacks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipelines.config.schema import AuditConfig
from pipelines.data.audit.visible_text import visible
from pipelines.data.convert.unused_keys import advice, blocking, meaning

_MAX_KEYS = 20
# The line of rows with text of a chat template, in conversations and in plain text.
_TYPED = {
    "typed_ends": {
        "conversations": "have an answer that ends in the text {name} ({first}): it is trained as "
        "letters before the real stop, and the model would print it: remove it from the answers",
        "text": "end in the text {name} ({first}): it is trained as letters before the end token, "
        "and the model would print it: remove it",
    },
    "typed_templates": {
        "conversations": "have the text of a chat template in a message, most often {name} "
        "({first}): it is trained as letters, inside of the base's own template: give the messages "
        "alone",
        "text": "have the text of a chat template, most often {name} ({first}): it is trained as "
        "letters, and so are the questions: give conversations as messages",
    },
}
_FITTED = {
    "tools": "tools are written into the system text",
    "tool calls": "tool calls are written into the text of the answer",
    "tool results": "tool results are written into user turns",
    "system texts": "system texts are written into the first user turn",
}


def row_problems(
    metadata: Mapping[str, Any], limits: AuditConfig, allow: Collection[str]
) -> Iterator[str]:
    """What is wrong with the rows of a dataset with this metadata, one line each.

    `allow` has the keys that the recipe leaves out on purpose.
    """
    keys: Mapping[str, int] = metadata.get("unused_keys", {})
    for key in blocking(keys, allow):
        name = visible(key)
        yield (
            f"the key {name} ({_rows(keys[key])}, {_first(metadata, 'unused_keys', key)}) is not "
            f"used; its meaning elsewhere: {meaning(key)}; {advice(key, name)}"
        )
    for kind in _TYPED:
        if _share(metadata, kind) > limits.max_typed_share:
            limit = f"data.audit.max_typed_share={limits.max_typed_share}"
            yield f"{_typed_line(metadata, kind)}; more than {limit} of the rows do"


def row_notes(metadata: Mapping[str, Any], limits: AuditConfig) -> Iterator[str]:
    """Facts about the rows that stop nothing, one line each."""
    if metadata.get("unused_keys"):
        yield unused_keys_line(metadata["unused_keys"])
    for kind in _TYPED:
        if 0 < _share(metadata, kind) <= limits.max_typed_share:
            yield _typed_line(metadata, kind)
    for name, count in metadata.get("fallbacks", {}).items():
        yield (
            f"{_FITTED[name]}: the base's chat template does not show them "
            f"({_rows(count)}, {_first(metadata, 'fallbacks', name)})"
        )


def unused_keys_line(keys: Mapping[str, int]) -> str:
    """`keys not used: label (300 rows), context (300)`, most frequent first."""
    most = sorted(keys.items(), key=lambda item: -item[1])
    texts = [f"{visible(key)} ({count:,})" for key, count in most[1:_MAX_KEYS]]
    texts.insert(0, f"{visible(most[0][0])} ({_rows(most[0][1])})")
    more = f" and {len(most) - _MAX_KEYS:,} more" if len(most) > _MAX_KEYS else ""
    return f"keys not used: {', '.join(texts)}{more}"


def _typed_line(metadata: Mapping[str, Any], kind: str) -> str:
    name, *others = metadata[kind]
    line = _TYPED[kind][metadata["kind"]].format(
        name=" or ".join(map(visible, (name, *others[:2]))), first=_first(metadata, kind, name)
    )
    return f"{sum(metadata[kind].values()):,} of {_num_rows(metadata):,} rows {line}"


def _share(metadata: Mapping[str, Any], kind: str) -> float:
    return sum(metadata.get(kind, {}).values()) / max(1, _num_rows(metadata))


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"


def _num_rows(metadata: Mapping[str, Any]) -> int:
    """Rows that became conversations or texts."""
    return metadata["counts"]["read"] - metadata["counts"].get("rejected", 0)


def _first(metadata: Mapping[str, Any], kind: str, name: str) -> str:
    return f"first: {metadata['first_rows'][kind][name]}"
