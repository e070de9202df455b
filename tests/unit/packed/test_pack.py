"""Best-fit packing against the textbook algorithm."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.packed.pack import best_fit, group_rows


def reference_best_fit(lengths: list[int], row_tokens: int) -> list[int]:
    """The textbook algorithm: each sample, longest first, into the tightest pack that fits."""
    spaces: list[int] = []
    pack_of = [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [p for p, space in enumerate(spaces) if space >= lengths[i]]
        if not fitting:
            spaces.append(row_tokens)
            fitting = [len(spaces) - 1]
        best = min(fitting, key=lambda p: spaces[p])
        spaces[best] -= lengths[i]
        pack_of[i] = best
    return pack_of


@given(st.lists(st.integers(1, 32), max_size=60))
def test_best_fit_is_as_full_as_the_textbook_one(lengths):
    pack_of = best_fit(np.array(lengths, np.int64), 32)
    loads = np.bincount(pack_of, lengths) if lengths else np.zeros(0)
    assert (loads <= 32).all() and (loads > 0).all()
    expected = reference_best_fit(lengths, 32)
    assert len(loads) == len(set(expected))
    assert sorted(loads) == sorted(np.bincount(expected, lengths) if lengths else [])


@pytest.mark.parametrize("length", [0, 33])
def test_a_length_outside_the_row_is_an_error(length):
    with pytest.raises(ValueError, match="1..32"):
        best_fit(np.array([3, length]), 32)


def test_group_rows_keeps_the_order_of_samples():
    samples, bounds = group_rows(np.array([1, 0, 1, 0, 2]))
    assert [list(samples[a:b]) for a, b in itertools.pairwise(bounds)] == [[1, 3], [0, 2], [4]]
