"""Every tensor of an adapter must move, except where it cannot yet."""

from __future__ import annotations

import pytest
import torch

from pipelines.core.errors import UserError
from pipelines.train.checkpoint.moved import check_moved
from pipelines.train.engine.protocol import OptimizerState

LAYER = "base_model.model.model.layers.0"
Q, DT = f"{LAYER}.self_attn.q_proj", f"{LAYER}.mamba.dt_proj"
EXPERT = f"{LAYER}.mlp.experts.7.up_proj"


def pair(module: str, a: bool, b: bool, b_value: float = 0.1) -> dict[str, tuple[float, float]]:
    """A's and B's weight and first moment by name; `a` and `b` say which had a gradient."""
    return {
        f"{module}.lora_A.default.weight": (0.5, float(a)),
        f"{module}.lora_B.default.weight": (b_value, float(b)),
    }


def check(step: int, *pairs: dict[str, tuple[float, float]]) -> None:
    values = {name: value for each in pairs for name, value in each.items()}
    weights = {name: torch.full((2, 2), weight) for name, (weight, _) in values.items()}
    moments = {name: torch.zeros(2, 2) for name in values}
    for name, (_, moment) in values.items():
        moments[name][1, 0] = 1e-12 * moment
    check_moved(step, OptimizerState(weights, moments, moments, step))


def test_tensors_without_a_gradient_are_named_with_the_targets_to_set() -> None:
    with pytest.raises(UserError) as error:
        check(20, pair(Q, True, True), pair(DT, False, False))
    assert str(error.value) == (
        "step 20: 2 of the adapter's 4 tensors have not moved in 20 updates, first "
        "model.layers.0.mamba.dt_proj.lora_A.weight: the base computes without these modules "
        "(dt_proj): set lora.targets=[q_proj]"
    )
    with pytest.raises(UserError, match=r"first .*q_proj.lora_B.weight: .*set other lora.targets"):
        check(1, pair(Q, True, False))


def test_a_waits_for_b_and_then_must_move() -> None:
    check(1, pair(Q, False, True))
    check(9, pair(Q, False, True))
    with pytest.raises(UserError, match="1 of the adapter's 2 tensors .*q_proj.lora_A"):
        check(10, pair(Q, False, True))


def test_a_b_that_is_zero_in_spite_of_its_gradient_is_named() -> None:
    check(3, pair(Q, True, True, b_value=1e-12))
    with pytest.raises(UserError, match=r"q_proj.lora_B"):
        check(3, pair(Q, True, True, b_value=0.0))


def test_magnitudes_and_full_modules_must_move_and_single_experts_need_not() -> None:
    others = {
        f"{Q}.lora_magnitude_vector.default.weight": (1.0, 1.0),
        "base_model.model.lm_head.modules_to_save.default.weight": (1.0, 1.0),
    }
    check(20, pair(Q, True, True), pair(EXPERT, False, False, b_value=0.0), others)
    for name in others:
        with pytest.raises(UserError, match="1 of the adapter's 4 tensors"):
            check(20, pair(Q, True, True), others | {name: (1.0, 0.0)})


def test_nothing_must_have_moved_before_the_first_update() -> None:
    check(0, pair(Q, False, False))
