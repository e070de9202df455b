"""The learning rate over a run."""

from __future__ import annotations

import pytest

from pipelines.config.schema import TrainConfig
from pipelines.train.schedule import learning_rate


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(lr=1.0, warmup_share=0.1, schedule="cosine")
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5, abs=1e-9) and rates[99] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)
    linear = TrainConfig(lr=1.0, warmup_share=0, schedule="linear")
    assert learning_rate(linear, 25, 100) == pytest.approx(0.75)
    assert learning_rate(linear.model_copy(update={"schedule": "constant"}), 99, 100) == 1.0
