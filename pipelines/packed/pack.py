"""Best-fit packing of samples into rows of a fixed number of tokens."""

from __future__ import annotations

import itertools

import numpy as np


def best_fit(lengths: np.ndarray, row_tokens: int) -> np.ndarray:
    """The pack of each sample, int64 [N], by best-fit decreasing over all samples at once.

    The result depends on `lengths` only. Samples of one length are num_packed together, so the work
    grows with the number of different lengths and not with N. Raises ValueError for a length
    outside 1..row_tokens.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and (lengths.min() < 1 or lengths.max() > row_tokens):
        raise ValueError(
            f"lengths must be in 1..{row_tokens}, these are {lengths.min()}..{lengths.max()}"
        )
    pack_of = np.empty(len(lengths), np.int64)
    open_packs = _OpenPacks(row_tokens)
    by_length = np.argsort(-lengths, kind="stable")
    bounds = np.flatnonzero(np.diff(lengths[by_length], prepend=-1, append=-1))
    num_packs = 0
    for first, last in itertools.pairwise(bounds):
        group = by_length[first:last]
        length = int(lengths[group[0]])
        num_packed = 0
        while num_packed < len(group) and (space := open_packs.tightest(length)) is not None:
            taken = open_packs.take(space, -(-(len(group) - num_packed) // (space // length)))
            num_packed += _fill(pack_of, group[num_packed:], taken, space, length, open_packs)
        rest = group[num_packed:]
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
    """Fill packs that have `space` left with samples of one length; the last may stay partly full.

    Returns how many samples were placed.
    """
    per_pack = space // length
    count = min(len(group), per_pack * len(packs))
    pack_of[group[:count]] = np.repeat(packs, per_pack)[:count]
    full, rest = divmod(count, per_pack)
    open_packs.put(space - per_pack * length, packs[:full])
    if rest:
        open_packs.put(space - rest * length, packs[full : full + 1])
    return count


class _OpenPacks:
    """Packs that are not full, by the space that they have left."""

    def __init__(self, row_tokens: int) -> None:
        self._by_space: list[list[np.ndarray]] = [[] for _ in range(row_tokens + 1)]
        self._used = np.zeros(row_tokens + 2, bool)

    def tightest(self, length: int) -> int | None:
        """The smallest space of at least `length` that a pack has left; None if there is none."""
        step = int(np.argmax(self._used[length:]))
        return length + step if self._used[length + step] else None

    def take(self, space: int, count: int) -> np.ndarray:
        """Remove up to `count` packs with this space and return them."""
        packs = np.concatenate(self._by_space[space])
        self._by_space[space] = [packs[count:]] if len(packs) > count else []
        self._used[space] = len(packs) > count
        return packs[:count]

    def put(self, space: int, packs: np.ndarray) -> None:
        """Add packs with this space; full packs are dropped."""
        if space and len(packs):
            self._by_space[space].append(packs)
            self._used[space] = True


def group_rows(pack_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples in pack order, and bounds: pack r has `samples[bounds[r]:bounds[r + 1]]`."""
    samples = np.argsort(pack_of, kind="stable")
    num_packs = int(pack_of.max()) + 1 if len(pack_of) else 0
    return samples, np.searchsorted(pack_of[samples], np.arange(num_packs + 1))
