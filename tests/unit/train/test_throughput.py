"""What a run says of itself: operations counted as torch counts them, MFU, time left, and the line that is drawn."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config.schema import ModelConfig
from pipelines.model.base import load_base
from pipelines.plan.flops import ModelSize
from pipelines.train.track import throughput
from pipelines.train.track.metrics_log import last_metrics
from pipelines.train.track.progress import RunProgress, describe
from pipelines.train.track.throughput import ThroughputMeter, matmul_rate

LINE = {
    "step": 7,
    "loss": 0.51234,
    "lr": 2e-4,
    "grad_norm": 1.25,
    "tokens_per_s": 12_100.0,
    "memory_bytes": 53 << 30,
}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_model_costs_what_torch_counts(pocket_base: str, quantization: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    size = ModelSize.of(load_base(ModelConfig(base=pocket_base, quantization=quantization), "cpu"))
    plain: Any = load_base(ModelConfig(base=pocket_base), "cpu", "eager")
    tokens = 50
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        plain(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
    forward = (
        2 * (size.linear + size.head) * tokens + 4 * size.attention * tokens**2
    )  # torch counts pairs to come too
    assert counted.get_total_flops() == forward


def test_frozen_weights_cost_two_thirds_and_masked_tokens_no_head() -> None:
    size = ModelSize(linear=1000, head=100, attention=10, dtype=torch.float32)
    assert size.step_flops(8, 3, 40, full=True) == 6 * (8000 + 300) + 6 * 400
    assert size.step_flops(8, 3, 40, full=False) == 4 * (8000 + 300) + 6 * 400


def test_mfu_is_the_share_of_the_rate_of_the_steps_rows() -> None:
    size = ModelSize(linear=1000, head=100, attention=10, dtype=torch.float32)
    row = {
        "sample_lengths": np.array([5, 3], np.int32),
        "loss_weights": np.array([0, 1, 0.5, 0, 0, 0, 0, 1, 0]),
    }
    meter = ThroughputMeter(size, full=False, num_steps=4, rate=1e6)
    flops = 2 * size.step_flops(8, 3, 34, full=False)
    assert meter.read(1, 0.5, [row, row])["mfu"] == pytest.approx(flops / 0.5 / 1e6)
    found = meter.read(2, 0.25, [row])
    assert (
        found["mfu"] == pytest.approx(flops / 2 / 0.25 / 1e6)
        and found["measured_tflops_per_s"] == 1e-6
    )
    assert "mfu" not in ThroughputMeter(size, False, 4, rate=None).read(1, 1.0, [row])


def test_time_left_counts_what_happens_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0, 106.0])
    monkeypatch.setattr(throughput.time, "monotonic", lambda: next(clock))
    meter = ThroughputMeter(ModelSize(1, 1, 1, torch.float32), full=False, num_steps=20, rate=None)
    assert meter.read(11, 1.0, [])["eta_s"] == 9.0, (
        "of the first step only its own seconds are known"
    )
    assert meter.read(12, 1.0, [])["eta_s"] == 8 * 3.0
    assert meter.read(13, 1.0, [])["eta_s"] == 7 * 3.0


def test_a_matrix_product_has_a_rate() -> None:
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e14


def test_the_line_names_everything_and_survives_what_is_not_finite() -> None:
    said = describe({**LINE, "eta_s": 3725.4, "mfu": 0.614, "measured_tflops_per_s": 790.4})
    assert said == (
        "loss 0.5123  1:02:05 left  12,100 tokens/s  lr 2.00e-04  grad 1.25  "
        "MFU 61% of 790 TFLOP/s measured  54,272 MiB"
    )
    assert describe({**LINE, "eta_s": 0.0, "loss": None, "grad_norm": None}) == (
        "loss not finite  12,100 tokens/s  lr 2.00e-04  grad not finite  54,272 MiB"
    )


class Bar:
    """Keeps what a person would see of one bar."""

    def __init__(self) -> None:
        self.at, self.seen, self.text = 0, [0], ""

    def note(self, text: str) -> None: ...

    @contextmanager
    def bar(self, name: str, total: int | None = None) -> Iterator[Any]:
        def advance(count: int = 1, text: str = "") -> None:
            self.at, self.text = self.at + count, text
            self.seen.append(self.at)

        yield advance


def test_the_bar_follows_the_file_and_goes_back_when_the_run_does(tmp_path: Path) -> None:
    bar, file = Bar(), tmp_path / "metrics.jsonl"

    def write(steps: range, tail: str = "") -> None:
        file.write_text(
            "".join(json.dumps({**LINE, "step": s, "eta_s": 1.0}) + "\n" for s in steps) + tail
        )
        end = time.monotonic() + 20
        while bar.at != steps[-1] and time.monotonic() < end:
            time.sleep(0.02)

    with RunProgress(tmp_path, 60, bar):
        write(range(1, 41), '{"step": 41, "lo')
        write(range(1, 31))
        write(range(1, 61))
    assert bar.seen == [0, 40, 30, 60] and "0:00:01 left" in bar.text


def test_the_last_line_is_found_in_a_long_file(tmp_path: Path) -> None:
    assert last_metrics(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text("")
    assert last_metrics(tmp_path) is None
    lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(5000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:9])
    assert last_metrics(tmp_path) == {"step": 4999, "loss": 1 / 5000}
