"""The element-wise work between a layer's matrix products: Triton on a GPU, the same in torch elsewhere.

`reference` is what each function means and what tests compare `triton_rows` and `triton_tiles` with.
T = tokens, h = hidden width.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch

OLDEST = (8, 0)  # compute capability
FP8_MAX = 448.0  # the largest finite value of float8_e4m3fn


class LowRank(NamedTuple):
    """scale * low weight^T, which a kernel adds to what it reads: low [T, r], weight [n, r], of any strides."""

    low: torch.Tensor
    weight: torch.Tensor
    scale: float


def capable(device: torch.device | None = None) -> bool:
    """Whether a GPU, by default the current one, is young enough for the kernels, flash attention and the fused layers."""
    return torch.cuda.get_device_capability(device) >= OLDEST


def kernels_for(tensor: torch.Tensor) -> ModuleType:
    """The module whose functions run where `tensor` lies."""
    if tensor.is_cuda and capable(tensor.device):
        from pipelines.layers.kernels import triton_rows

        return triton_rows
    from pipelines.layers.kernels import reference

    return reference
