"""Digests of JSON-like values."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain
    )


def digest_of(value: Any) -> str:
    """Hex sha256 (64 characters) of a JSON-like value's canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def short(digest: str) -> str:
    """The first 12 characters of a digest, by which people refer to it."""
    return digest[:12]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
