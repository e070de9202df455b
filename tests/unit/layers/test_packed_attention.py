"""Attention over a packed row: no sample sees another one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipelines.layers.attention import packed_attention
from pipelines.layers.bounds import SampleBounds


@settings(deadline=None)  # a busy machine is no failure
@given(lengths=st.lists(st.integers(1, 13), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_packed_attention_equals_attention_over_each_sample(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    query = torch.randn(1, 4, total, 8, generator=generator)
    key, value = (torch.randn(1, 2, total, 8, generator=generator) for _ in range(2))
    bounds = SampleBounds.of(torch.tensor(lengths))
    out, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, scaling=0.3, bounds=bounds
    )
    at = 0
    for length in lengths:
        part = slice(at, at + length)
        expected = functional.scaled_dot_product_attention(
            query[:, :, part],
            key[:, :, part],
            value[:, :, part],
            is_causal=True,
            scale=0.3,
            enable_gqa=True,
        )
        torch.testing.assert_close(out[0, part], expected[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
        at += length


def test_attention_without_sample_bounds_is_refused() -> None:
    tensor = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="bounds"):
        packed_attention(torch.nn.Identity(), tensor, tensor, tensor, None)
