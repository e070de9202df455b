"""The kernels of `reference` that add an adapter's update to their input, in Triton, by tiles.

A program has a tile of BM tokens and BN columns. For the update it loads the tokens' rows of `left`
and the columns' rows of `right`, whose rank is small, and multiplies them in registers: the update
[T, n] itself never exists in memory. A rank is padded to the next power of two of at least 16, the
smallest size of tl.dot; masked entries load as 0. input_precision="ieee" keeps fp32 products from
being rounded to TF32. Offsets of rows are 64-bit, since T times a width can exceed 2^31.
"""

# Triton is installed only with a GPU build of torch, and kernels are called by kernel[grid](...).
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from pipelines.layers.kernels import LowRank

# Tokens and columns of a tile, warps of its program and, for SwiGLU, the number of programs that
# share the column tiles of a row of tiles. The fastest of about a dozen choices on an H100.
_ADD = (64, 64, 4)
_SWIGLU, _SWIGLU_BACKWARD = (32, 128, 4, 16), (64, 64, 4, 16)
_TUNED_RANK = 32  # higher ranks need smaller tiles


@triton.jit
def load_left(left, left_row, rank, rows, row_mask, R: tl.constexpr):
    """The tile [rows, R] of left [T, rank]."""
    k = tl.arange(0, R)[None, :]
    return tl.load(left + rows[:, None] * left_row + k, row_mask[:, None] & (k < rank), 0.0)


@triton.jit
def load_right(right, right_n, right_k, rank, columns, column_mask, R: tl.constexpr):
    """The tile [R, columns] of the transpose of right [n, rank]."""
    k = tl.arange(0, R)[:, None]
    return tl.load(
        right + columns[None, :] * right_n + k * right_k, column_mask[None, :] & (k < rank), 0.0
    )


@triton.jit
def _add(
    y, y_row, residual, out, left, left_row, right, right_n, right_k, rank, scale, tokens, n,
    R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    row_mask, column_mask = rows < tokens, columns < n
    mask = row_mask[:, None] & column_mask[None, :]
    at = rows[:, None] * n + columns[None, :]
    value = tl.load(y + rows[:, None] * y_row + columns[None, :], mask, 0.0).to(tl.float32)
    value += tl.load(residual + at, mask, 0.0).to(tl.float32)
    if R > 0:
        left_tile = load_left(left, left_row, rank, rows, row_mask, R)
        right_tile = load_right(right, right_n, right_k, rank, columns, column_mask, R)
        value += scale * tl.dot(left_tile, right_tile, input_precision="ieee")
    tl.store(out + at, value.to(out.dtype.element_ty), mask)


@triton.jit
def _swiglu(
    gate_up, row, act, grad_xa, tokens, i, tiles,
    g_left, g_row, g_right, g_n, g_k, g_rank, g_scale,
    u_left, u_row, u_right, u_n, u_k, u_rank, u_scale,
    d_left, d_row, d_right, d_n, d_k, d_rank, d_scale,
    GR: tl.constexpr, UR: tl.constexpr, DR: tl.constexpr,
    BACKWARD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    # g_, u_ and d_ are the updates of gate, up and, in the backward, of d_act; a rank of 0 means
    # none. A program walks over its `tiles` column tiles, so that a row's left tiles are loaded
    # once and the gradients of g_left and u_left are summed over its columns in registers.
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    row_mask = rows < tokens
    if GR > 0:
        g_left_tile, grad_g = (
            load_left(g_left, g_row, g_rank, rows, row_mask, GR),
            tl.zeros([BM, GR], tl.float32),
        )
    if UR > 0:
        u_left_tile, grad_u = (
            load_left(u_left, u_row, u_rank, rows, row_mask, UR),
            tl.zeros([BM, UR], tl.float32),
        )
    if DR > 0:
        d_left_tile = load_left(d_left, d_row, d_rank, rows, row_mask, DR)
    for tile in range(tiles):
        columns = (tl.program_id(0) * tiles + tile) * BN + tl.arange(0, BN)
        column_mask = columns < i
        mask = row_mask[:, None] & column_mask[None, :]
        at, gates = rows[:, None] * i + columns[None, :], rows[:, None] * row + columns[None, :]
        gate = tl.load(gate_up + gates, mask, 0.0).to(tl.float32)
        up = tl.load(gate_up + gates + i, mask, 0.0).to(tl.float32)
        if GR > 0:
            g_right_tile = load_right(g_right, g_n, g_k, g_rank, columns, column_mask, GR)
            gate += g_scale * tl.dot(g_left_tile, g_right_tile, input_precision="ieee")
        if UR > 0:
            u_right_tile = load_right(u_right, u_n, u_k, u_rank, columns, column_mask, UR)
            up += u_scale * tl.dot(u_left_tile, u_right_tile, input_precision="ieee")
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        if BACKWARD:
            d = tl.load(act + at, mask, 0.0).to(tl.float32)
            if DR > 0:
                d_right_tile = load_right(d_right, d_n, d_k, d_rank, columns, column_mask, DR)
                d += d_scale * tl.dot(d_left_tile, d_right_tile, input_precision="ieee")
            # In place: every element of gate_up and act is read and written by one program only.
            d_gate = (d * up * (sigmoid + silu * (1 - sigmoid))).to(gate_up.dtype.element_ty)
            d_up = (d * silu).to(gate_up.dtype.element_ty)
            tl.store(gate_up + gates, d_gate, mask)
            tl.store(gate_up + gates + i, d_up, mask)
            # From the rounded gradients, as in the reference, which reads them from memory.
            if GR > 0:
                grad_g = tl.dot(d_gate, tl.trans(g_right_tile), grad_g, input_precision="ieee")
            if UR > 0:
                grad_u = tl.dot(d_up, tl.trans(u_right_tile), grad_u, input_precision="ieee")
        tl.store(act + at, (silu * up).to(act.dtype.element_ty), mask)
    if BACKWARD:
        # Each program writes a partial sum of its own; the caller adds them up in a fixed order.
        # Atomic additions would make the result depend on the order in which programs finish.
        into = grad_xa + (tl.program_id(0) * tokens + rows[:, None]) * (g_rank + u_rank)
        if GR > 0:
            k = tl.arange(0, GR)[None, :]
            tl.store(into + k, g_scale * grad_g, row_mask[:, None] & (k < g_rank))
        if UR > 0:
            k = tl.arange(0, UR)[None, :]
            tl.store(into + g_rank + k, u_scale * grad_u, row_mask[:, None] & (k < u_rank))


def update_arguments(
    update: LowRank | None, placeholder: torch.Tensor
) -> tuple[tuple[Any, ...], int]:
    """A kernel's arguments for an update, and the rank of its tiles; 0 without an update."""
    # `placeholder` only gives the kernel valid pointers: with rank 0 it reads neither of them.
    if update is None:
        return (placeholder, 0, placeholder, 0, 0, 0, 0.0), 0
    left, right, scale = update
    assert left.stride(1) == 1 and left.dtype == right.dtype
    arguments = (left, left.stride(0), right, *right.stride(), left.shape[1], scale)
    return arguments, max(16, triton.next_power_of_2(left.shape[1]))


def add(y: torch.Tensor, update: LowRank | None, residual: torch.Tensor) -> torch.Tensor:
    """As `reference.add`."""
    (tokens, n), (lora, rank) = y.shape, update_arguments(update, y)
    assert residual.is_contiguous() and y.stride(1) == 1
    out, (rows, columns, warps) = torch.empty_like(residual), _ADD
    grid = (triton.cdiv(n, columns), triton.cdiv(tokens, rows))
    _add[grid](
        y, y.stride(0), residual, out, *lora, tokens, n, rank, rows, columns, num_warps=warps
    )
    return out


def swiglu(
    gate_up: torch.Tensor, gate_update: LowRank | None, up_update: LowRank | None
) -> torch.Tensor:
    """As `reference.swiglu`."""
    act = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    _run_swiglu(gate_up, act, None, (gate_update, up_update, None), _SWIGLU)
    return act


def swiglu_backward_(
    d_act: torch.Tensor,
    gate_up: torch.Tensor,
    gate_update: LowRank | None,
    up_update: LowRank | None,
    d_act_update: LowRank | None,
    grad_xa: torch.Tensor | None,
) -> None:
    """As `reference.swiglu_backward_`."""
    ranks = sum(update.left.shape[1] for update in (gate_update, up_update) if update is not None)
    parts = torch.empty(
        _SWIGLU_BACKWARD[3], len(d_act), ranks, dtype=torch.float32, device=d_act.device
    )
    _run_swiglu(gate_up, d_act, parts, (gate_update, up_update, d_act_update), _SWIGLU_BACKWARD)
    if grad_xa is not None:
        grad_xa[:, ranks:] = 0
        grad_xa[:, :ranks] = parts.sum(0)


def _run_swiglu(
    gate_up: torch.Tensor,
    act: torch.Tensor,
    grad_xa: torch.Tensor | None,
    updates: tuple[LowRank | None, ...],
    tile: tuple[int, int, int, int],
) -> None:
    (tokens, width), (rows, columns, warps, parts) = act.shape, tile
    assert gate_up.stride(1) == 1 and act.is_contiguous()
    loras = [update_arguments(update, act) for update in updates]
    wide, stages = max(rank for _, rank in loras) > _TUNED_RANK or act.dtype == torch.float32, 3
    if wide:  # the tuned tiles would not fit into a multiprocessor's shared memory
        rows, columns, stages = 32, 32 if act.dtype == torch.float32 else 64, 1
    arguments = [value for values, _ in loras for value in values]
    tiles, backward = triton.cdiv(triton.cdiv(width, columns), parts), grad_xa is not None
    target = act if grad_xa is None else grad_xa  # a valid pointer, not written in the forward
    _swiglu[(parts, triton.cdiv(tokens, rows))](
        gate_up, gate_up.stride(0), act, target, tokens, width, tiles, *arguments,
        *(rank for _, rank in loras), backward, rows, columns, num_warps=warps, num_stages=stages,
    )  # fmt: skip
