"""The kernels of `reference` in Triton that run one program per row.

This module also re-exports the kernels of `triton_heads` and `triton_tiles`, so that it has all.

A program loads its row once and does every step on it, so that each tensor passes memory once. All
arithmetic is in fp32; results are rounded once, as in `reference`.
"""

# Triton is installed only with a GPU build of torch, and kernels are called by kernel[grid](...).
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipelines.layers.kernels import FP8_MAX
from pipelines.layers.kernels.triton_heads import add_rotate_, head_norm_backward_
from pipelines.layers.kernels.triton_tiles import add, swiglu, swiglu_backward_

__all__ = [
    "add", "add_rotate_", "cross_entropy_", "head_norm_backward_", "quantize_rows", "rms_norm",
    "rms_norm_backward", "rotate", "swiglu", "swiglu_backward_",
]  # fmt: skip


def _block(width: int) -> tuple[int, int]:
    """Block size and number of warps for a row: Triton's ranges must be powers of two."""
    block = triton.next_power_of_2(width)
    return block, min(16, max(4, block // 512))


@triton.jit
def _rms(x, weight, y, rstd, eps, h, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < h
    # Masked columns load as 0, so they add nothing to the sum.
    value = tl.load(x + row * h + at, mask, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / h + eps)
    tl.store(rstd + row, scale)
    value = value * scale * tl.load(weight + at, mask, 0.0).to(tl.float32)
    tl.store(y + row * h + at, value.to(y.dtype.element_ty), mask)


@triton.jit
def _rms_backward(
    dy, x, weight, rstd, residual, dx, h, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < h
    scale = tl.load(rstd + row)
    unit = tl.load(x + row * h + at, mask, 0.0).to(tl.float32) * scale
    scaled = tl.load(dy + row * h + at, mask, 0.0).to(tl.float32) * tl.load(
        weight + at, mask, 0.0
    ).to(tl.float32)
    value = scale * (scaled - unit * (tl.sum(scaled * unit) / h))
    if RESIDUAL:
        value += tl.load(residual + row * h + at, mask, 0.0).to(tl.float32)
    tl.store(dx + row * h + at, value.to(dx.dtype.element_ty), mask)


@triton.jit
def _rotate(
    source,
    out,
    cos,
    sin,
    source_row,
    out_row,
    table_row,
    heads,
    sign,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head, lane = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    mask = (head < heads) & (lane < HALF)
    c = tl.load(cos + row * table_row + tl.arange(0, HALF)).to(tl.float32)[None, :]
    s = tl.load(sin + row * table_row + tl.arange(0, HALF)).to(tl.float32)[None, :] * sign
    at = head * 2 * HALF + lane
    first = tl.load(source + row * source_row + at, mask, 0.0).to(tl.float32)
    second = tl.load(source + row * source_row + at + HALF, mask, 0.0).to(tl.float32)
    tl.store(out + row * out_row + at, (first * c - second * s).to(out.dtype.element_ty), mask)
    tl.store(
        out + row * out_row + at + HALF, (second * c + first * s).to(out.dtype.element_ty), mask
    )


@triton.jit
def _quantize(x, out, scales, x_row, h, largest, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < h
    value = tl.load(x + row * x_row + at, mask, 0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value)) / largest, 1e-12)
    tl.store(scales + row, scale)
    value = tl.clamp(value / scale, -largest, largest)
    tl.store(out + row * h + at, value.to(out.dtype.element_ty), mask)


@triton.jit
def _cross_entropy(logits, targets, weights, losses, width: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # row * width exceeds 32 bits for large vocabularies
    line = logits + row * width
    # A vocabulary does not fit into one block: the maximum and the sum of exponentials are updated
    # block by block (online softmax), then a second pass writes the gradient over the logits.
    peak, total = -float("inf"), 0.0
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(line + at, at < width, -float("inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(value))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(value - higher))
        peak = higher
    target, weight = tl.load(targets + row), tl.load(weights + row)
    tl.store(losses + row, tl.log(total) + peak - tl.load(line + target).to(tl.float32))
    # Every lane must have read the target's logit before any lane overwrites it.
    tl.debug_barrier()
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(line + at, at < width, -float("inf")).to(tl.float32)
        value = tl.exp(value - peak) / total - tl.where(at == target, 1.0, 0.0)
        tl.store(line + at, (value * weight).to(logits.dtype.element_ty), at < width)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.rms_norm`."""
    y, rstd = torch.empty_like(x), torch.empty(len(x), dtype=torch.float32, device=x.device)
    block, warps = _block(x.shape[1])
    _rms[(len(x),)](x, weight, y, rstd, eps, x.shape[1], block, num_warps=warps)
    return y, rstd


def rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """As `reference.rms_norm_backward`."""
    dx = torch.empty_like(x)
    block, warps = _block(x.shape[1])
    # A kernel needs a pointer even for an argument that it does not read.
    addend = x if residual is None else residual.contiguous()
    _rms_backward[(len(x),)](
        dy, x, weight, rstd, addend, dx, x.shape[1], residual is not None, block, num_warps=warps
    )
    return dx


def rotate(
    source: torch.Tensor,
    out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    inverse: bool = False,
) -> None:
    """As `reference.rotate`; a token's heads must be contiguous, tokens may have any stride."""
    tokens, heads, size = source.shape
    assert source.stride()[1:] == (size, 1) and out.stride()[1:] == (size, 1)
    strides, sign = (source.stride(0), out.stride(0), cos.stride(0)), -1.0 if inverse else 1.0
    _rotate[(tokens,)](
        source, out, cos, sin, *strides, heads, sign, size // 2, triton.next_power_of_2(heads)
    )


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.quantize_rows`; rows may have any stride."""
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    block, warps = _block(x.shape[1])
    _quantize[(len(x),)](x, out, scale, x.stride(0), x.shape[1], FP8_MAX, block, num_warps=warps)
    return out, scale


def cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """As `reference.cross_entropy_`."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    per_row = (targets.contiguous(), weights.contiguous())
    _cross_entropy[(len(logits),)](logits, *per_row, losses, logits.shape[1], 8192, num_warps=16)
    return losses
