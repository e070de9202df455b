"""A frozen linear in float8 (e4m3) with one scale per row.

W [out, in] is stored twice: by rows for x W^T, where a row is an output, and transposed for dy W,
where a row is an input. In both products the scales are then factors outside the sum (row-wise
scaling of torch._scaled_mm), which a single copy with scales per output would not allow for dy W.
Activations and gradients are quantized row by row during the step. A GPU needs compute capability
8.9 or higher; a CPU emulates it slowly, multiplying the same quantized numbers in fp32.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from pipelines.layers.kernels import FP8_MAX, kernels_for

SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Modules of one parent that read the same tensor."""


class Fp8Linear(torch.nn.Linear):
    """y = x W^T + b with W in float8.

    `weight` contains the bits as uint8, so that a `.to(dtype)` of the model does not convert them.
    """

    def __init__(self, linear: torch.nn.Linear, scale_in: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = (
            linear.in_features,
            linear.out_features,
            linear.bias,
        )
        weight = linear.weight.detach()
        # A row of W is an output: y = sum_k x_k W_nk, so a scale per n is outside the sum.
        by_out, self.scale_out = kernels_for(weight).quantize_rows(weight)
        self.weight, self.scale_in = (
            torch.nn.Parameter(by_out.view(torch.uint8), requires_grad=False),
            scale_in,
        )
        # A row of W^T is an input, with a scale that other linears share (`to_fp8`). A plain
        # attribute, so that `state_dict` does not contain the second copy.
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
    """Replace every linear but `head` by its float8 form. On a GPU widths must be multiples of 16.

    Linears with a common input share the scale of each input, so that dy W of all is one product.
    """
    for parent in list(model.modules()):
        linears = {
            name: m
            for name, m in parent.named_children()
            if type(m) is torch.nn.Linear and m is not head
        }
        # Every group shares the scales of its inputs; a linear with an input of its own is alone.
        groups = [[name for name in names if name in linears] for names in SHARED_INPUT]
        groups += [[name] for name in linears if not any(name in names for names in SHARED_INPUT)]
        for names in groups:
            scales = [_input_scale(linears[name].weight.detach()) for name in names]
            for name in names:
                setattr(parent, name, Fp8Linear(linears[name], torch.stack(scales).amax(0)))


def scaled_product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [T, K] times the transpose of a float8 matrix [N, K] (or its bits) with row scales [N, 1].

    Returns [T, N] in x's dtype; x is quantized row by row first.
    """
    weight = weight.view(torch.float8_e4m3fn)  # of the same bits, no copy
    rows, row_scale = kernels_for(x).quantize_rows(x)
    if x.is_cuda:
        # Row-wise scaling needs a bfloat16 result and a transposed (column-major) second matrix.
        product = cast(Any, torch)._scaled_mm(
            rows, weight.T, row_scale, scale.T, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return product.to(x.dtype)
    return (rows.float() @ weight.float().T * row_scale * scale.T).to(x.dtype)


def fp8_unsupported(device: torch.device) -> str:
    """The reason why a device cannot multiply in float8; "" if it can, or is a CPU (emulation)."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9):
        return ""
    name = torch.cuda.get_device_name(device)
    return f"{name} has no float8 matrix units, which need compute capability 8.9 or higher"


def _input_scale(weight: torch.Tensor) -> torch.Tensor:
    """Scales [in, 1] of the transposed weight's rows: they map its largest value to float8's."""
    return (weight.abs().amax(0).float() / FP8_MAX).clamp(min=1e-12)[:, None]
