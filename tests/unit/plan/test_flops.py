"""The operations of a training step, compared with torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipelines.config.schema import ModelConfig
from pipelines.model.base import load_base
from pipelines.plan.flops import step_flops
from pipelines.plan.shape import ModelShape, shape_of_base

SHAPE = ModelShape(
    total=1100, linear=1000, head=100, hidden=10, queries=10, kv=10, intermediate=10, layers=1,
    vocabulary=10, head_size=10, dtype=torch.float32,
)  # fmt: skip


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_forward_costs_as_many_operations_as_torch_counts(
    pocket_base: str, quantization: Any
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    shape = shape_of_base(
        load_base(ModelConfig(base=pocket_base, quantization=quantization), "cpu")
    )
    plain: Any = load_base(ModelConfig(base=pocket_base), "cpu", "eager")
    tokens = 50
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
    # Eager attention computes the masked half of the token pairs, too.
    forward = (
        2 * (shape.linear + shape.head) * tokens + 4 * shape.layers * shape.queries * tokens**2
    )
    assert counter.get_total_flops() == forward


def test_frozen_weights_cost_two_thirds_and_masked_tokens_cost_no_head() -> None:
    assert step_flops(SHAPE, 8, 3, 40, full=True) == 6 * (8000 + 300) + 6 * 400
    assert step_flops(SHAPE, 8, 3, 40, full=False) == 4 * (8000 + 300) + 6 * 400


def test_recomputing_adds_a_forward_of_the_linears_and_none_of_the_head() -> None:
    once = step_flops(SHAPE, 8, 3, 40, full=False)
    assert step_flops(SHAPE, 8, 3, 40, full=False, recomputed=0.5) == once + 2 * 8000 * 0.5
