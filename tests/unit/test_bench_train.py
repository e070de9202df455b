"""The training benchmark itself, on its tiny shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_smoke_arm_runs_on_a_cpu() -> None:
    command = [sys.executable, "-m", "bench.train", "--json", "--arm", "smoke", "--steps", "6"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith("{")))
    assert found["steps"] == 2 and found["tokens_per_s"] > 0
    assert found["first_loss"] == pytest.approx(6.24, abs=0.1)  # ln(512), the tiny vocabulary


def test_the_floor_counts_weights_state_and_what_a_backward_needs() -> None:
    from bench.train import ARMS, floor_bytes

    tiny, trained = ARMS["smoke"], 1000
    layer = 2 * tiny.tokens * (4 * 128 + 2 * 64 + 2 * 256)
    weights = 2 * 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256) + 2 * 2 * 128 * 512
    assert floor_bytes(tiny, trained) == weights + 16 * trained + 2 * layer
