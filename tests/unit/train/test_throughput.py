"""The speed that a run reports: MFU and remaining time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.plan.flops import step_flops
from pipelines.plan.shape import ModelShape
from pipelines.train.track import throughput
from pipelines.train.track.throughput import ThroughputMeter, matmul_rate

SHAPE = ModelShape(
    total=1100, linear=1000, head=100, hidden=10, queries=10, kv=10, intermediate=10, layers=1,
    vocabulary=10, head_size=10, dtype=torch.float32,
)  # fmt: skip


def test_mfu_is_the_operations_of_the_steps_rows_as_a_share_of_the_rate() -> None:
    row = {
        "sample_lengths": np.array([5, 3], np.int32),
        "loss_weights": np.array([0, 1, 0.5, 0, 0, 0, 0, 1, 0]),
    }
    meter = ThroughputMeter(SHAPE, full=False, num_steps=4, rate=1e6)
    flops = step_flops(SHAPE, 8, 3, 34, full=False)
    assert meter.read(1, 0.5, [row, row])["mfu"] == pytest.approx(2 * flops / 0.5 / 1e6)
    values = meter.read(2, 0.25, [row])
    assert values["mfu"] == pytest.approx(flops / 0.25 / 1e6)
    assert values["measured_tflops_per_s"] == 1e-6
    assert "mfu" not in ThroughputMeter(SHAPE, False, 4, rate=None).read(1, 1.0, [row])


def test_remaining_time_counts_the_time_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A meter that starts at step 11 knows of that step only its own seconds."""
    clock = iter([100.0, 103.0, 106.0])
    monkeypatch.setattr(throughput.time, "monotonic", lambda: next(clock))
    meter = ThroughputMeter(SHAPE, full=False, num_steps=20, rate=None)
    assert meter.read(11, 1.0, [])["eta_s"] == 9.0
    assert meter.read(12, 1.0, [])["eta_s"] == 8 * 3.0
    assert meter.read(13, 1.0, [])["eta_s"] == 7 * 3.0


def test_a_matrix_product_has_a_rate() -> None:
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e14
