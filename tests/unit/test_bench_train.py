"""The training benchmark on its tiny shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_smoke_arm_runs_on_a_cpu() -> None:
    command = [sys.executable, "-m", "bench.train", "--json", "--arm", "smoke", "--steps", "6"]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    result = json.loads(
        next(line for line in completed.stdout.splitlines() if line.startswith("{"))
    )
    assert result["steps"] == 2 and result["tokens_per_s"] > 0
    assert result["first_loss"] == pytest.approx(6.24, abs=0.1)  # ln(512), the tiny vocabulary


def test_the_floor_counts_weights_optimizer_state_and_saved_activations() -> None:
    import torch

    from bench._arms import ARMS, floor_bytes
    from bench._shapes import random_model
    from pipelines.plan.shape import shape_of_base

    tiny, num_trainable = ARMS["smoke"], 1000
    base = random_model(tiny.shape, "sdpa", "none", torch.device("cpu"), torch.float32)
    layer = 2 * tiny.tokens * (4 * 128 + 2 * 64 + 2 * 256)
    weights = 2 * 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256) + 2 * 2 * 128 * 512
    assert floor_bytes(tiny, shape_of_base(base), num_trainable) == (
        weights + 16 * num_trainable + 2 * layer
    )
