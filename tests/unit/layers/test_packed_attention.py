"""Attention over a packed row: no sample sees another one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipelines.core.errors import UserError
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
    with pytest.raises(UserError, match="bounds"):
        packed_attention(torch.nn.Identity(), tensor, tensor, tensor, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"s_aux": torch.zeros(1)}, "attention sinks"),
        ({"softcap": 50.0}, "softcap"),
        ({"sliding_window": 3}, "set data.row_tokens=3 or less"),
        ({"is_causal": False}, "later tokens"),
        ({"position_bias": torch.zeros(1)}, "bias per position"),
        ({"some_later_argument": 1}, "some_later_argument"),
        ({"attention_mask": torch.ones(1)}, "mask of its own"),
    ],
)
def test_an_argument_that_changes_the_result_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    tensor, bounds = torch.zeros(1, 1, 4, 8), SampleBounds.of(torch.tensor([4]))
    mask = arguments.pop("attention_mask", None)
    with pytest.raises(UserError, match=message):
        packed_attention(
            torch.nn.Identity(), tensor, tensor, tensor, mask, bounds=bounds, **arguments
        )


def test_arguments_that_do_not_change_the_result_are_accepted() -> None:
    tensor, bounds = torch.zeros(1, 1, 4, 8), SampleBounds.of(torch.tensor([4]))
    harmless: dict[str, Any] = {
        "position_ids": torch.arange(4),
        "use_cache": False,
        "sliding_window": 4,
        "softcap": None,
        "s_aux": None,
        "is_causal": True,
    }
    packed_attention(torch.nn.Identity(), tensor, tensor, tensor, None, bounds=bounds, **harmless)


def test_a_layer_whose_tokens_see_later_tokens_is_refused() -> None:
    tensor, bounds, layer = (
        torch.zeros(1, 1, 4, 8),
        SampleBounds.of(torch.tensor([4])),
        torch.nn.Identity(),
    )
    setattr(layer, "is_causal", False)  # noqa: B010 - as in a bidirectional encoder
    with pytest.raises(UserError, match="later tokens"):
        packed_attention(layer, tensor, tensor, tensor, None, bounds=bounds)
