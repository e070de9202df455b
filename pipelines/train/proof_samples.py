"""The samples of a dataset on which a base is proven."""

from __future__ import annotations

import numpy as np

from pipelines.train.row_feed import SampleSource

MAX_SAMPLES = 4  # more would cost over 1 % of a run of 200 steps on a GPU
_SHARES = (0.5, 0.9)
_SPARE_TOKENS = 512  # of all samples but the longest, or a quarter of a row if that is more


def choose_samples(feed: SampleSource, row_tokens: int) -> list[np.ndarray]:
    """Token ids of up to MAX_SAMPLES samples, the longest first; empty if none has two tokens.

    The longest sample crosses every window that a sample of the dataset crosses. The shortest one
    and some between follow, of so few tokens that the proof stays cheap.
    """
    lengths, rows = feed.sample_lengths()
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] >= 2]  # the first token of a sample has no loss
    if not len(order):
        return []
    chosen = dict.fromkeys([int(order[-1]), int(order[0])])
    spare = max(_SPARE_TOKENS, row_tokens // 4)
    for share in _SHARES:
        sample = int(order[int(share * (len(order) - 1))])
        if sample not in chosen and lengths[sample] <= spare:
            chosen[sample] = None
            spare -= int(lengths[sample])
    firsts = np.searchsorted(rows, rows)  # of each sample's row
    return [feed.read_samples(int(rows[i]))[i - int(firsts[i])] for i in chosen]
