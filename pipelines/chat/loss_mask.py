"""Loss weights of tokens from the spans of the answers, and counts that check these weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np

from pipelines.chat.encoder import Encoded
from pipelines.chat.spans import ByteSpans

# Of all texts together: L texts, T tokens, A answers with a loss, C context spans


@dataclass(frozen=True)
class LossMasks:
    """`weights` float32 [T], and counts for each text, int64 [L].

    `num_loss_turns`: assistant turns with a loss; `num_missing_stop`: those of them whose last
    token with a loss is no stop token. `num_context_spans`: texts of system, user and tool turns;
    `num_leaked_tokens`: tokens that touch one of these and have a loss. `num_prompt_tokens`: tokens
    up to the end of the last answer's generation prompt, -1 where no token begins exactly there.
    """

    weights: np.ndarray
    num_loss_turns: np.ndarray
    num_missing_stop: np.ndarray
    num_context_spans: np.ndarray
    num_leaked_tokens: np.ndarray
    num_prompt_tokens: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence[LossMasks]) -> LossMasks:
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def empty(cls, count: int) -> LossMasks:
        """The masks of `count` texts without tokens."""
        zeros = np.zeros(count, np.int64)
        return cls(np.empty(0, np.float32), zeros, zeros, zeros, zeros, zeros - 1)


def loss_masks(encoded: Encoded, spans: Sequence[ByteSpans], stop_ids: np.ndarray) -> LossMasks:
    """The masks of encoded texts with these spans.

    A token has a loss if it is completely inside an answer. A token that touches the text of a
    system, user or tool turn belongs to that text.
    """
    turns = np.fromiter((len(s.label_spans) for s in spans), np.int64, len(spans)) // 3
    answers = np.fromiter(chain.from_iterable(s.label_spans for s in spans), np.float64)
    answers = answers.reshape(-1, 3)
    bases = np.repeat(encoded.bases[:-1], turns)
    first = np.searchsorted(encoded.starts, bases + answers[:, 0].astype(np.int64))
    last = np.searchsorted(encoded.ends, bases + answers[:, 1].astype(np.int64), side="right")
    last = np.maximum(last, first)
    # Answers follow one another, so their bounds cut the tokens into runs without and with a loss,
    # by turns: one np.repeat over the runs gives all weights.
    bounds = np.maximum.accumulate(np.stack([first, last], axis=1).reshape(-1))
    values = np.zeros((len(answers), 2), np.float32)
    values[:, 1] = answers[:, 2]
    sizes = np.diff(bounds, prepend=0, append=len(encoded.ids))
    weights = np.repeat(np.append(values.reshape(-1), np.float32(0)), sizes)
    ends_with_stop = np.zeros(len(answers), bool)
    nonempty = last > first
    ends_with_stop[nonempty] = np.isin(encoded.ids[last[nonempty] - 1], stop_ids)
    num_context = np.fromiter((len(s.context_spans) for s in spans), np.int64, len(spans)) // 2
    leaked = _leaked_tokens(encoded, spans, num_context, bounds)
    prompt_ends = np.fromiter((s.prompt_end for s in spans), np.int64, len(spans))
    return LossMasks(
        weights,
        turns,
        _sums(turns, ~ends_with_stop),
        num_context,
        _sums(num_context, leaked),
        _prompt_tokens(encoded, prompt_ends),
    )


def _prompt_tokens(encoded: Encoded, prompt_ends: np.ndarray) -> np.ndarray:
    """Tokens of each text before its prompt's end, int64 [L]; -1 where no token begins there."""
    ends = encoded.bases[:-1] + prompt_ends
    first = np.searchsorted(encoded.starts, ends)
    inside = (prompt_ends >= 0) & (first < encoded.offsets[1:])
    aligned = np.flatnonzero(inside)[encoded.starts[first[inside]] == ends[inside]]
    counts = np.full(len(prompt_ends), -1, np.int64)
    counts[aligned] = first[aligned] - encoded.offsets[aligned]
    return counts


def _leaked_tokens(
    encoded: Encoded, spans: Sequence[ByteSpans], num_context: np.ndarray, bounds: np.ndarray
) -> np.ndarray:
    """Tokens with a loss that touch each context span, int64 [C].

    `bounds` int64 [2 A] are the first and the last + 1 token of every answer.
    """
    context = np.fromiter(chain.from_iterable(s.context_spans for s in spans), np.int64)
    context = context.reshape(-1, 2) + np.repeat(encoded.bases[:-1], num_context)[:, None]
    if not len(bounds):
        return np.zeros(len(context), np.int64)
    first = np.searchsorted(encoded.ends, context[:, 0], side="right")
    last = np.searchsorted(encoded.starts, context[:, 1])
    # The number of tokens with a loss before a token is linear between two bounds: it grows by one
    # a token inside an answer and not at all outside. So np.interp over the bounds is exact.
    steps = np.diff(bounds, prepend=bounds[0])
    steps[::2] = 0
    before = np.cumsum(steps)
    counts = np.interp(last, bounds, before) - np.interp(first, bounds, before)
    return np.maximum(np.rint(counts).astype(np.int64), 0)


def _sums(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum of each text's `counts[i]` values."""
    sums = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    ends = np.cumsum(counts)
    return sums[ends] - sums[ends - counts]
