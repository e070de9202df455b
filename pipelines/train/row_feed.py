"""The interface to the packed rows of one split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np


class SampleSource(Protocol):
    """Reads single samples of one split."""

    def sample_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each sample and the number of its row, int64 [N], in the rows' order."""
        ...

    def read_samples(self, row: int) -> list[np.ndarray]:
        """The token ids of each sample of a row."""
        ...


class Feed(SampleSource, Protocol):
    """Streams the packed rows of one split, too."""

    def batches(
        self, order: np.ndarray, batch_size: int, start: int = 0
    ) -> Iterator[Mapping[str, Any]]:
        """The rows `order[start:]`, by index, `batch_size` at a time as columns."""
        ...
