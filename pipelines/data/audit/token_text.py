"""A sample's tokens as text to show: runs inside and outside the loss, and tokens by character."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from pipelines.chat import ChatRenderer

_REPLACEMENT = "\ufffd"  # the text of bytes that are no complete character
_MAX_CHARACTER_TOKENS = 12  # an emoji takes up to that many


def loss_runs(weights: Sequence[float] | np.ndarray) -> list[tuple[int, int, bool]]:
    """Runs of tokens inside and outside the loss as (first, end, in_loss)."""
    in_loss = np.asarray(weights) > 0
    cuts = [0, *(np.flatnonzero(np.diff(in_loss)) + 1).tolist(), len(in_loss)]
    return [(a, b, bool(in_loss[a])) for a, b in itertools.pairwise(cuts) if b > a]


def glyphs(ids: Sequence[int], renderer: ChatRenderer) -> list[tuple[list[int], str]]:
    """Tokens with their texts; tokens that only together spell a character are grouped."""
    texts, groups, first = renderer.decode_each(ids), [], 0
    while first < len(ids):
        end, text = first + 1, texts[first]
        while (
            _REPLACEMENT in text
            and end < min(len(ids), first + _MAX_CHARACTER_TOKENS)
            and _REPLACEMENT in texts[end]
        ):
            end += 1
            text = renderer.decode(ids[first:end], skip_special_tokens=False)
        if _REPLACEMENT in text:
            end, text = first + 1, texts[first]
        groups.append((list(ids[first:end]), text))
        first = end
    return groups
