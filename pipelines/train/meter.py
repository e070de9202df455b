"""What a run costs while it runs: floating-point operations against what the device can do, memory, time left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_CPU_SIZE, _GPU_SIZE = 768, 6144
_REPEATS = 5


@dataclass(frozen=True)
class ModelSize:
    """What a token costs: weights of the linears, of the head, layers x heads x head size for attention; in which dtype."""

    linear: int
    head: int
    attention: int
    dtype: torch.dtype

    @staticmethod
    def of(base: Any) -> ModelSize:
        """The size of a causal language model without adapters, whatever its weights are held in."""
        head, config = base.get_output_embeddings(), base.config
        sizes = {
            module: module.in_features * module.out_features
            for module in base.modules()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        }
        head_size = sizes.pop(head, 0)
        heads = getattr(config, "num_attention_heads", 0)
        each = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        layers, dtype = getattr(config, "num_hidden_layers", 0), base.get_input_embeddings().weight.dtype
        return ModelSize(sum(sizes.values()), head_size, layers * heads * each, dtype)

    def step_flops(self, tokens: int, trained: int, squares: int, full: bool) -> float:
        """Operations of a forward and backward of `tokens`, of which `trained` pass the head.

        A weight costs 2 a token forward, 2 for the gradient of its input, 2 more for its own where it trains (`full`);
        adapters are left out, being under a hundredth. Causal attention costs 2 a pair of tokens forward and 4
        backward; `squares` is the sum of the squared sample lengths. Recomputing is not counted: it is no progress.
        """
        return (self.linear * tokens + self.head * trained) * (6.0 if full else 4.0) + 6.0 * self.attention * squares

    def row_flops(self, row: Mapping[str, Any], full: bool = False) -> float:
        """`step_flops` of one packed row."""
        lengths = np.asarray(row["sample_lengths"], dtype=np.int64)
        trained = int(np.count_nonzero(row["loss_weights"]))
        return self.step_flops(int(lengths.sum()), trained, int((lengths**2).sum()), full)


class Meter:
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
            values |= {"mfu": flops / step_s / self._rate, "measured_tflops_per_s": self._rate / 1e12}
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
