"""Timing of GPU work: events around steps, the rate of matrix products, and a step's profile."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np


def matmul_rates() -> dict[str, float]:
    """TFLOP/s of 8192^3 bf16 products: the best of short bursts, and over eight seconds."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    operations = 2 * 8192**3

    def timed(count: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            _ = a @ b
        end.record()
        torch.cuda.synchronize()
        return operations * count / (start.elapsed_time(end) / 1e3) / 1e12

    timed(5)
    time.sleep(1)
    burst = max(timed(5) for _ in range(5))
    return {"burst_tflops": burst, "sustained_tflops": timed(int(8 * burst * 1e12 / operations))}


def mark(device: Any) -> Any:
    """A recorded event in the GPU's queue; on a CPU the current time."""
    import torch

    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(marks: list[Any], device: Any) -> list[float]:
    """Seconds between each mark and the next."""
    import torch

    if device.type == "cpu":
        return list(np.diff(marks))
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]


def peak_gib(device: Any) -> float:
    """The most memory allocated on the GPU since its counter was reset; NaN on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")


def start_trace() -> Any:
    """A profiler of steps 9 and 10; call its `step` after each step."""
    from torch.profiler import ProfilerActivity, profile, schedule

    profiler = profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA],
        schedule=schedule(wait=6, warmup=2, active=2, repeat=1),
    )
    profiler.start()
    return profiler


def print_trace(profiler: Any) -> None:
    """Print a step's kernels by time, and the longest gaps in which the GPU was idle."""
    profiler.stop()

    def is_kernel(event: Any, name: str) -> bool:
        return event.device_type.name != "CPU" and not name.startswith("ProfilerStep")

    events = [
        e for e in profiler.key_averages() if e.self_device_time_total > 0 and is_kernel(e, e.key)
    ]
    total = sum(e.self_device_time_total for e in events)
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:28]:
        share = event.self_device_time_total / total
        line = f"{event.self_device_time_total / 2e3:8.2f} ms per step {share:6.1%}"
        print(f"| {line}  x{event.count // 2:<5} {event.key[:110]}")
    print(f"| {total / 2e3:8.2f} ms of kernels per step")
    spans = sorted(
        (e.time_range.start, e.time_range.end, e.name)
        for e in profiler.events()
        if is_kernel(e, e.name)
    )
    gaps, last = [], spans[0]
    for span in spans:
        gaps.append((span[0] - last[1], last[2], span[2]))
        last = max(last, span, key=lambda s: s[1])
    print(
        f"| {(last[1] - spans[0][0]) / 2e3:8.2f} ms from first to last kernel, halved; the longest "
        f"gaps:"
    )
    for gap, before, after in sorted(gaps, reverse=True)[:10]:
        print(f"| {gap / 1e3:8.2f} ms between {before[:50]} and {after[:50]}")
