"""The element-wise work between a layer's matrix products: in Triton on a GPU, in torch elsewhere.

`reference` defines each function, and tests compare the Triton modules with it.
T = tokens, h = hidden width. Names that end in _ write into their arguments.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch

MIN_COMPUTE_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16 and torch's flash attention
FP8_MAX = 448.0  # the largest finite value of float8_e4m3fn


class LowRank(NamedTuple):
    """scale * left right^T [T, n], which a kernel adds to the tensor that it reads.

    left [T, r] is xa with right = B [n, r] in a forward, and grad_xa with right = A^T in a
    backward. Both may have any strides.
    """

    left: torch.Tensor
    right: torch.Tensor
    scale: float


def supports_kernels(device: torch.device | None = None) -> bool:
    """True if a GPU runs the kernels, flash attention and the fused layers.

    `device` is by default the current one.
    """
    return torch.cuda.get_device_capability(device) >= MIN_COMPUTE_CAPABILITY


def kernels_for(tensor: torch.Tensor) -> ModuleType:
    """The module whose functions run on the device of `tensor`."""
    if tensor.is_cuda and supports_kernels(tensor.device):
        from pipelines.layers.kernels import triton_rows

        return triton_rows
    from pipelines.layers.kernels import reference

    return reference
