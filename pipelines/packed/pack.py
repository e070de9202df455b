"""Best-fit packing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


def best_fit(lengths: np.ndarray, row_tokens: int) -> np.ndarray:
    """Pack number of each sample, int64 [N], by best-fit decreasing over all samples at once.

    Deterministic in `lengths` alone. Samples of one length are placed together, so the work grows with the number of
    different lengths and not with N. Every length must be in 1..row_tokens (ValueError).
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and (lengths.min() < 1 or lengths.max() > row_tokens):
        raise ValueError(
            f"lengths must lie in 1..{row_tokens}, found {lengths.min()}..{lengths.max()}"
        )
    pack_of = np.empty(len(lengths), np.int64)
    open_packs = _OpenPacks(row_tokens)
    by_length = np.argsort(-lengths, kind="stable")
    bounds = np.flatnonzero(np.diff(lengths[by_length], prepend=-1, append=-1))
    num_packs = 0
    for first, last in itertools.pairwise(bounds):
        group = by_length[first:last]
        length = int(lengths[group[0]])
        placed = 0
        while placed < len(group) and (space := open_packs.tightest(length)) is not None:
            taken = open_packs.take(space, -(-(len(group) - placed) // (space // length)))
            placed += _fill(pack_of, group[placed:], taken, space, length, open_packs)
        rest = group[placed:]
        if len(rest):
            fresh = np.arange(num_packs, num_packs - (-len(rest) // (row_tokens // length)))
            num_packs += len(fresh)
            _fill(pack_of, rest, fresh, row_tokens, length, open_packs)
    return pack_of


def _fill(
    pack_of: np.ndarray,
    group: np.ndarray,
    packs: np.ndarray,
    space: int,
    length: int,
    open_packs: _OpenPacks,
) -> int:
    """Put as many samples of one length as fit into packs with `space` left; the last pack may stay part full."""
    each = space // length
    count = min(len(group), each * len(packs))
    pack_of[group[:count]] = np.repeat(packs, each)[:count]
    full, rest = divmod(count, each)
    open_packs.put(space - each * length, packs[:full])
    if rest:
        open_packs.put(space - rest * length, packs[full : full + 1])
    return count


class _OpenPacks:
    """Packs by the space that they have left; the tightest that still fits is found through a sorted view."""

    def __init__(self, row_tokens: int) -> None:
        self._by_space: list[list[np.ndarray]] = [[] for _ in range(row_tokens + 1)]
        self._used = np.zeros(row_tokens + 2, bool)

    def tightest(self, length: int) -> int | None:
        """The least space of at least `length` that some pack has left."""
        step = int(np.argmax(self._used[length:]))
        return length + step if self._used[length + step] else None

    def take(self, space: int, count: int) -> np.ndarray:
        packs = np.concatenate(self._by_space[space])
        self._by_space[space] = [packs[count:]] if len(packs) > count else []
        self._used[space] = len(packs) > count
        return packs[:count]

    def put(self, space: int, packs: np.ndarray) -> None:
        if space and len(packs):
            self._by_space[space].append(packs)
            self._used[space] = True


def group_rows(pack_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples in pack order and each pack's bounds in it: pack r holds `samples[bounds[r]:bounds[r + 1]]`, in order."""
    samples = np.argsort(pack_of, kind="stable")
    num_packs = int(pack_of.max()) + 1 if len(pack_of) else 0
    return samples, np.searchsorted(pack_of[samples], np.arange(num_packs + 1))


def cu_seqlens(sample_lengths: Sequence[int] | np.ndarray, row_tokens: int) -> np.ndarray:
    """Sequence boundaries of one pack, int32: 0, each sample's end, and the end of the padding tail if there is one."""
    ends = np.cumsum(np.asarray(sample_lengths, np.int64))
    if len(ends) and ends[-1] > row_tokens:
        raise ValueError(f"the samples hold {ends[-1]} tokens, the row only {row_tokens}")
    tail = [row_tokens] if not len(ends) or ends[-1] < row_tokens else []
    return np.concatenate(([0], ends, tail)).astype(np.int32)


def positions(sample_lengths: Sequence[int] | np.ndarray, row_tokens: int) -> np.ndarray:
    """Position ids of one pack, int32 [T]: each sample counts from 0, and so does the padding tail."""
    bounds = cu_seqlens(sample_lengths, row_tokens)
    return (np.arange(row_tokens) - np.repeat(bounds[:-1], np.diff(bounds))).astype(np.int32)
