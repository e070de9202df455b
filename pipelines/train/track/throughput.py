"""Throughput."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pipelines.plan.flops import ModelSize

_CPU_SIZE, _GPU_SIZE = 768, 6144


_REPEATS = 5


class ThroughputMeter:
    """Watches one rank: ask it once a step. `rate` is what the device does in operations a second (None: unknown, so no MFU)."""

    def __init__(self, size: ModelSize, full: bool, num_steps: int, rate: float | None) -> None:
        self._size, self._full, self._num_steps, self._rate = size, full, num_steps, rate
        self._first: tuple[int, float] | None = None

    def read(self, step: int, step_s: float, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """After step 1, 2, ...: peak memory, seconds left (checkpoints included) and, where the rate is known, MFU.

        MFU is the operations a second of this rank's `rows` as a share of `rate`, which is told beside it.
        """
        now = time.monotonic()
        self._first = self._first or (step, now)
        since, started = self._first
        each = (now - started) / (step - since) if step > since else step_s
        values = {"memory_bytes": memory_bytes(), "eta_s": each * (self._num_steps - step)}
        if self._rate:
            flops = sum(self._size.row_flops(row, self._full) for row in rows)
            values |= {
                "mfu": flops / step_s / self._rate,
                "measured_tflops_per_s": self._rate / 1e12,
            }
        return values


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product on this device: the best of five."""
    size = _CPU_SIZE if device.type == "cpu" else _GPU_SIZE
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the GPU
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def memory_bytes() -> int:
    """Peak memory of this process: allocated on the GPU where there is one, else resident."""
    import resource

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
