"""Loss weights of tokens from the spans of the answers, and counts that check these weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

import numpy as np

from pipelines.chat.encoder import Encoded
from pipelines.chat.spans import NO_PROMPT, NO_THOUGHT, ByteSpans

# Of all texts together: L texts, T tokens, A answers with a loss, C context spans


@dataclass(frozen=True)
class LossMasks:
    """`weights` float32 [T], and counts for each text, int64 [L].

    `num_loss_turns`: assistant turns with a loss; `num_missing_stop`: those of them whose last
    token with a loss is no stop token. `num_context_spans`: texts of system, user and tool turns;
    `num_leaked_tokens`: tokens that touch one of these and have a loss.

    `num_prompts`: assistant turns with a loss that have a generation prompt; `num_prompts_differ`:
    those of them whose first token with a loss does not stand directly behind the ids of that
    prompt; `num_no_thought` of these lack the thought that the prompt asks for. `num_left_out`:
    assistant turns without a loss because their prompt is another text. `num_thoughts`,
    `num_dropped_thoughts`: thoughts of rows, and those that the template leaves out.
    """

    weights: np.ndarray
    num_loss_turns: np.ndarray
    num_missing_stop: np.ndarray
    num_context_spans: np.ndarray
    num_leaked_tokens: np.ndarray
    num_prompts: np.ndarray
    num_prompts_differ: np.ndarray
    num_no_thought: np.ndarray
    num_left_out: np.ndarray
    num_thoughts: np.ndarray
    num_dropped_thoughts: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence[LossMasks]) -> LossMasks:
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def empty(cls, count: int) -> LossMasks:
        """The masks of `count` texts without tokens."""
        zeros = [np.zeros(count, np.int64)] * (len(fields(cls)) - 1)
        return cls(np.empty(0, np.float32), *zeros)

    @classmethod
    def all_trained(cls, num_tokens: int, weight: float) -> LossMasks:
        """The masks of one plain text, all of whose tokens have the same weight.

        It counts as one turn with a loss, and its end token as the stop of the turn.
        """
        turns = np.array([weight > 0], np.int64)
        weights = np.full(num_tokens, weight, np.float32)
        return replace(cls.empty(1), weights=weights, num_loss_turns=turns)


def loss_masks(encoded: Encoded, spans: Sequence[ByteSpans], stop_ids: np.ndarray) -> LossMasks:
    """The masks of encoded texts with these spans.

    A token has a loss if it is completely inside an answer and touches no masked part of it. A
    token that touches the text of a system, user or tool turn belongs to that text.
    """
    turns = np.fromiter((len(s.label_spans) for s in spans), np.int64, len(spans)) // 4
    answers = np.fromiter(chain.from_iterable(s.label_spans for s in spans), np.float64)
    answers = answers.reshape(-1, 4)
    starts = np.repeat(encoded.bases[:-1], turns) + answers[:, 0].astype(np.int64)
    ends = np.repeat(encoded.bases[:-1], turns) + answers[:, 1].astype(np.int64)
    gaps = answers[:, 3].astype(np.int64)
    first = np.searchsorted(encoded.starts, starts)
    last = np.searchsorted(encoded.ends, ends, side="right")
    last = np.maximum(last, first)
    # Answers follow one another, so their bounds cut the tokens into runs without and with a loss,
    # by turns: one np.repeat over the runs gives all weights.
    bounds = np.maximum.accumulate(np.stack([first, last], axis=1).reshape(-1))
    values = np.zeros((len(answers), 2), np.float32)
    values[:, 1] = answers[:, 2]
    sizes = np.diff(bounds, prepend=0, append=len(encoded.ids))
    weights = np.repeat(np.append(values.reshape(-1), np.float32(0)), sizes)
    _mask_parts(weights, encoded, spans)
    ends_with_stop = np.zeros(len(answers), bool)
    nonempty = last > first
    ends_with_stop[nonempty] = np.isin(encoded.ids[last[nonempty] - 1], stop_ids)
    num_context = np.fromiter((len(s.context_spans) for s in spans), np.int64, len(spans)) // 2
    leaked = _leaked_tokens(encoded, spans, num_context, bounds)
    # A token that reaches across the end of the prompt is none of the prompt's own tokens.
    joined = first > np.repeat(encoded.offsets[:-1], turns)
    joined[joined] = encoded.ends[first[joined] - 1] > starts[joined]
    no_thought = (gaps > 0) | (gaps == NO_THOUGHT)
    return LossMasks(
        weights,
        turns,
        _sums(turns, ~ends_with_stop),
        num_context,
        _sums(num_context, leaked),
        _sums(turns, gaps != NO_PROMPT),
        _sums(turns, (gaps != NO_PROMPT) & ((gaps != 0) | joined)),
        _sums(turns, no_thought),
        *(
            np.fromiter((getattr(s, name) for s in spans), np.int64, len(spans))
            for name in ("num_left_out", "num_thoughts", "num_dropped_thoughts")
        ),
    )


def _mask_parts(weights: np.ndarray, encoded: Encoded, spans: Sequence[ByteSpans]) -> None:
    """Take the tokens that touch a masked part out of the loss, in place."""
    for i, each in enumerate(spans):
        if not each.masked_spans:
            continue
        masked = np.array(each.masked_spans, np.int64).reshape(-1, 2) + encoded.bases[i]
        for start, end in masked.tolist():
            first = np.searchsorted(encoded.ends, start, side="right")
            last = np.searchsorted(encoded.starts, end)
            weights[first:last] = 0


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
