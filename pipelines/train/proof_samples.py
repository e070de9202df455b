"""The samples of a dataset on which a base is proven."""

from __future__ import annotations

import numpy as np

from pipelines.train.row_feed import SampleSource

MAX_SAMPLES = 3  # more would cost over 1 % of 200 steps of a float8 base on a GPU
_SPARE_TOKENS = 512  # of the middle sample, or a quarter of a row if that is more


def choose_samples(feed: SampleSource, row_tokens: int) -> list[np.ndarray]:
    """Token ids of up to MAX_SAMPLES samples, the longest first; empty if none has two tokens.

    The longest sample crosses every window that a sample of the dataset crosses. The shortest one
    follows, and the one of median length unless it has so many tokens that the proof is not cheap.
    """
    lengths, rows = feed.sample_lengths()
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] >= 2]  # the first token of a sample has no loss
    if not len(order):
        return []
    chosen = dict.fromkeys([int(order[-1]), int(order[0])])
    middle = int(order[(len(order) - 1) // 2])
    if lengths[middle] <= max(_SPARE_TOKENS, row_tokens // 4):
        chosen[middle] = None
    firsts = np.searchsorted(rows, rows)  # of each sample's row
    return [feed.read_samples(int(rows[i]))[i - int(firsts[i])] for i in chosen]
