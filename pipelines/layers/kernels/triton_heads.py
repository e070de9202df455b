"""The kernels of `reference` over the heads of queries and keys, in Triton.

A program has one head of BM tokens. `triton_tiles` explains how updates are added.
"""

# Triton is installed only with a GPU build of torch, and kernels are called by kernel[grid](...).
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipelines.layers.kernels import LowRank
from pipelines.layers.kernels.triton_tiles import load_left, load_right, update_arguments

_ROTATE_TOKENS, _ROTATE_WARPS = 64, 4


@triton.jit
def _add_rotate(
    y, row, out, out_row, cos, sin, table_row, norm, eps,
    left, left_row, right, right_n, right_k, rank, scale, tokens,
    R: tl.constexpr, ROTATE: tl.constexpr, NORM: tl.constexpr, KEEP_Y: tl.constexpr,
    HALF: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    # A program has one head of BM tokens, in two halves: rotation pairs lane j with lane j + D / 2.
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    row_mask = rows < tokens
    half = tl.arange(0, HALF)
    first_columns, second_columns = (
        tl.program_id(0) * 2 * HALF + half,
        tl.program_id(0) * 2 * HALF + HALF + half,
    )
    mask = row_mask[:, None] & (half < HALF)[None, :]
    first = tl.load(y + rows[:, None] * row + first_columns[None, :], mask, 0.0).to(tl.float32)
    second = tl.load(y + rows[:, None] * row + second_columns[None, :], mask, 0.0).to(tl.float32)
    if R > 0:
        left_tile = load_left(left, left_row, rank, rows, row_mask, R)
        right_tile = load_right(right, right_n, right_k, rank, first_columns, first_columns >= 0, R)
        first += scale * tl.dot(left_tile, right_tile, input_precision="ieee")
        right_tile = load_right(
            right, right_n, right_k, rank, second_columns, second_columns >= 0, R
        )
        second += scale * tl.dot(left_tile, right_tile, input_precision="ieee")
        if KEEP_Y:
            # The norm's backward reads y from memory, so the norm must start from the rounded
            # values.
            y_first, y_second = first.to(y.dtype.element_ty), second.to(y.dtype.element_ty)
            tl.store(y + rows[:, None] * row + first_columns[None, :], y_first, mask)
            tl.store(y + rows[:, None] * row + second_columns[None, :], y_second, mask)
            first, second = y_first.to(tl.float32), y_second.to(tl.float32)
    if NORM:
        rstd = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + eps)
        first *= rstd[:, None] * tl.load(norm + half).to(tl.float32)[None, :]
        second *= rstd[:, None] * tl.load(norm + HALF + half).to(tl.float32)[None, :]
    if ROTATE:
        at = rows[:, None] * table_row + half[None, :]
        c, s = (
            tl.load(cos + at, mask, 0.0).to(tl.float32),
            tl.load(sin + at, mask, 0.0).to(tl.float32),
        )
        first, second = first * c - second * s, second * c + first * s
    tl.store(
        out + rows[:, None] * out_row + first_columns[None, :], first.to(y.dtype.element_ty), mask
    )
    tl.store(
        out + rows[:, None] * out_row + second_columns[None, :], second.to(y.dtype.element_ty), mask
    )


@triton.jit
def _head_norm_backward(d, d_row, y, row, norm, eps, tokens, D: tl.constexpr, BM: tl.constexpr):
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    lane = tl.arange(0, D)
    columns = tl.program_id(0) * D + lane
    mask = (rows < tokens)[:, None] & (lane < D)[None, :]
    # 1 / rms is computed again from y: storing it would cost a tensor per layer.
    unit = tl.load(y + rows[:, None] * row + columns[None, :], mask, 0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(unit * unit, 1) / D + eps)[:, None]
    unit *= rstd
    target = d + rows[:, None] * d_row + columns[None, :]
    scaled = (
        tl.load(target, mask, 0.0).to(tl.float32) * tl.load(norm + lane).to(tl.float32)[None, :]
    )
    gradient = rstd * (scaled - unit * (tl.sum(scaled * unit, 1) / D)[:, None])
    tl.store(target, gradient.to(d.dtype.element_ty), mask)


def add_rotate_(
    y: torch.Tensor,
    heads: int,
    update: LowRank | None,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    norm: tuple[torch.Tensor, float] | None = None,
    out: torch.Tensor | None = None,
) -> None:
    """As `reference.add_rotate_`."""
    if update is None and tables is None and norm is None and out is None:
        return
    (tokens, width), (lora, rank) = y.shape, update_arguments(update, y)
    target = y if out is None else out
    (cos, sin), (weight, eps) = tables or (y, y), norm or (y, 0.0)  # y as a placeholder
    _add_rotate[(heads, triton.cdiv(tokens, _ROTATE_TOKENS))](
        y, y.stride(0), target, target.stride(0), cos, sin, cos.stride(0), weight, eps,
        *lora, tokens, rank, tables is not None, norm is not None, out is not None,
        width // heads // 2, _ROTATE_TOKENS, num_warps=_ROTATE_WARPS,
    )  # fmt: skip


def head_norm_backward_(
    d: torch.Tensor, y: torch.Tensor, heads: int, norm: tuple[torch.Tensor, float]
) -> None:
    """As `reference.head_norm_backward_`."""
    (tokens, width), (weight, eps) = y.shape, norm
    _head_norm_backward[(heads, triton.cdiv(tokens, _ROTATE_TOKENS))](
        d,
        d.stride(0),
        y,
        y.stride(0),
        weight,
        eps,
        tokens,
        width // heads,
        _ROTATE_TOKENS,
        num_warps=_ROTATE_WARPS,
    )
