"""The JSON form of nouns, and nouns with changed URIs."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pipelines.core.artifacts import ArtifactRef
from pipelines.core.digests import canonical_json

T = TypeVar("T")


def to_json(noun: Any) -> dict[str, Any]:
    """A noun as plain JSON values; `from_json` is its inverse."""
    return json.loads(canonical_json(noun))


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """Rebuild a noun, nested nouns and tuples included, from the output of `to_json`.

    Unknown keys are ignored and missing fields get their default. Raises TypeError when a field
    without a default is missing.
    """
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: _from_plain(hints[k], v) for k, v in data.items() if k in names})


def map_uris(noun: T, change: Callable[[str], str]) -> T:
    """A copy of a noun in which `change` was applied to the URI of every ArtifactRef in it."""
    if isinstance(noun, ArtifactRef):
        return dataclasses.replace(noun, uri=change(noun.uri))
    if isinstance(noun, tuple):
        return tuple(map_uris(item, change) for item in noun)  # type: ignore[return-value]
    if dataclasses.is_dataclass(noun) and not isinstance(noun, type):
        changed = {name: map_uris(value, change) for name, value in vars(noun).items()}
        return dataclasses.replace(noun, **changed)
    return noun


def _from_plain(hint: Any, value: Any) -> Any:
    """The value of a field with this type hint, from its JSON form."""
    if value is None:
        return None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_from_plain(item, v) for v in value)
    if typing.get_origin(hint) is types.UnionType:  # only `Noun | None` occurs
        return _from_plain(typing.get_args(hint)[0], value)
    return value
