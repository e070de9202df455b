"""Speed of a run: MFU, remaining time, peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pipelines.plan.flops import row_flops
from pipelines.plan.shape import ModelShape

_CPU_SIZE, _GPU_SIZE = 768, 6144
_REPEATS = 5


class ThroughputMeter:
    """Measures one rank; call `read` once after each step.

    `full` says that all weights train. `rate` is the device's matmul rate in operations per second;
    None if unknown, and then there is no MFU.
    """

    def __init__(self, shape: ModelShape, full: bool, num_steps: int, rate: float | None) -> None:
        self._shape, self._full, self._num_steps, self._rate = shape, full, num_steps, rate
        self._first: tuple[int, float] | None = None

    def read(self, step: int, step_s: float, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """After step 1, 2, ...: "memory_bytes" (peak), "eta_s" and, if the rate is known, MFU.

        MFU is the model's operations for this rank's `rows` per second of the step, as a share of
        `rate`, which "measured_tflops_per_s" reports. "eta_s" is the mean time of a step so far,
        saves and scoring included, times the remaining steps.
        """
        now = time.monotonic()
        self._first = self._first or (step, now)
        first_step, first_time = self._first
        # Of the first step only its own seconds are known.
        mean_s = (now - first_time) / (step - first_step) if step > first_step else step_s
        values = {"memory_bytes": memory_bytes(), "eta_s": mean_s * (self._num_steps - step)}
        if self._rate:
            flops = sum(row_flops(self._shape, row, self._full) for row in rows)
            values |= {
                "mfu": flops / step_s / self._rate,
                "measured_tflops_per_s": self._rate / 1e12,
            }
        return values


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product on this device: the best of five."""
    size = _CPU_SIZE if device.type == "cpu" else _GPU_SIZE
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the GPU
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def memory_bytes() -> int:
    """Peak memory of this process: allocated on the GPU if there is one, else resident."""
    import resource

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
