"""A frozen linear held in float8 (e4m3), with one scale a row, multiplied in float8 where the GPU can.

W [out, in] is held twice: by rows for x W^T, where a row is an output, and transposed for dy W, where a row is an input.
Both products then have their scales outside the sum that they take (row-wise scaling: torch._scaled_mm). Activations and
gradients are quantized row by row as they come. On a CPU the same numbers are multiplied in fp32.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from pipelines.layers.kernels import FP8_MAX, kernels_for

ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Modules of one parent that read the same tensor."""


class Fp8Linear(torch.nn.Linear):
    """y = x W^T + b with W in float8. `weight` holds the bits as uint8, so that nothing casts them by accident."""

    def __init__(self, linear: torch.nn.Linear, scale_in: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = (
            linear.in_features,
            linear.out_features,
            linear.bias,
        )
        weight = linear.weight.detach()
        by_out, self.scale_out = kernels_for(weight).quantize_rows(weight)
        self.weight, self.scale_in = (
            torch.nn.Parameter(by_out.view(torch.uint8), requires_grad=False),
            scale_in,
        )
        self.transposed = (weight.T.float() / scale_in).to(torch.float8_e4m3fn).contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, _Product.apply(x, self))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, linear: Fp8Linear) -> torch.Tensor:
        ctx.linear = linear
        y = scaled_product(x.flatten(0, -2), linear.weight, linear.scale_out)
        y = y.unflatten(0, x.shape[:-1])
        return y if linear.bias is None else y + linear.bias

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        dy, linear = grads[0], ctx.linear
        dx = scaled_product(dy.flatten(0, -2), linear.transposed, linear.scale_in)
        return dx.unflatten(0, dy.shape[:-1]), None


def to_fp8(model: torch.nn.Module, head: torch.nn.Module) -> None:
    """Replace every linear but `head` by its float8 form. Widths must be multiples of 16 on a GPU.

    Linears of one input get one scale for each row of it, so that dy W of all of them can be one product.
    """
    for parent in list(model.modules()):
        linears = {
            name: m
            for name, m in parent.named_children()
            if type(m) is torch.nn.Linear and m is not head
        }
        groups = [[name for name in names if name in linears] for names in ONE_INPUT]
        groups += [[name] for name in linears if not any(name in names for names in ONE_INPUT)]
        for names in groups:
            scales = [_largest(linears[name].weight.detach()) for name in names]
            for name in names:
                setattr(parent, name, Fp8Linear(linears[name], torch.stack(scales).amax(0)))


def scaled_product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [T, K] times a float8 matrix [N, K] (or its bits) transposed, with its row scales [N, 1]; x's dtype, [T, N]."""
    weight = weight.view(torch.float8_e4m3fn)
    rows, row_scale = kernels_for(x).quantize_rows(x)
    if x.is_cuda:
        product = cast(Any, torch)._scaled_mm(
            rows, weight.T, row_scale, scale.T, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return product.to(x.dtype)
    return (rows.float() @ weight.float().T * row_scale * scale.T).to(x.dtype)


def fp8_unsupported(device: torch.device) -> str:
    """Why this device cannot multiply in float8; empty when it can, or emulates it as a CPU does."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9):
        return ""
    return f"{torch.cuda.get_device_name(device)} has no float8 matrix units (compute capability 8.9 or higher has)"


def _largest(weight: torch.Tensor) -> torch.Tensor:
    """The scale [in, 1] of the transposed weight's rows."""
    return (weight.abs().amax(0).float() / FP8_MAX).clamp(min=1e-12)[:, None]
