"""The kernels that add an adapter's part to what they read, tile by tile, in Triton. `reference` says what they mean."""

# Triton is there only beside a GPU build of torch, and a kernel is called by a grid in brackets.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from pipelines.layers.kernels import LowRank

# Tokens and columns of a tile and warps of its program, and for SwiGLU the programs among which a row's tiles are dealt:
# the fastest of some dozen on an H100.
_ADD = (64, 64, 4)
_SWIGLU, _SWIGLU_BACKWARD = (32, 128, 4, 16), (64, 64, 4, 16)
_TUNED_RANK = 32
_ROTATE_TOKENS, _ROTATE_WARPS = 64, 4


@triton.jit
def _low(low, low_row, rank, rows, row_mask, R: tl.constexpr):
    """[rows, R] of low [T, rank]."""
    k = tl.arange(0, R)[None, :]
    return tl.load(low + rows[:, None] * low_row + k, row_mask[:, None] & (k < rank), 0.0)


@triton.jit
def _weight(weight, weight_n, weight_k, rank, columns, column_mask, R: tl.constexpr):
    """[R, columns] of weight [n, rank] transposed."""
    k = tl.arange(0, R)[:, None]
    return tl.load(
        weight + columns[None, :] * weight_n + k * weight_k, column_mask[None, :] & (k < rank), 0.0
    )


@triton.jit
def _add(
    y, y_row, residual, out, low, low_row, weight, weight_n, weight_k, rank, scale, tokens, n,
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
        lows = _low(low, low_row, rank, rows, row_mask, R)
        weights = _weight(weight, weight_n, weight_k, rank, columns, column_mask, R)
        value += scale * tl.dot(lows, weights, input_precision="ieee")
    tl.store(out + at, value.to(out.dtype.element_ty), mask)


@triton.jit
def _swiglu(
    gate_up, row, act, d_low, tokens, i, tiles,
    g_low, g_row, g_weight, g_n, g_k, g_rank, g_scale,
    u_low, u_row, u_weight, u_n, u_k, u_rank, u_scale,
    d_act_low, d_row, d_weight, d_n, d_k, d_rank, d_scale,
    GR: tl.constexpr, UR: tl.constexpr, DR: tl.constexpr, BACKWARD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    row_mask = rows < tokens
    if GR > 0:
        g_lows, d_g_low = (
            _low(g_low, g_row, g_rank, rows, row_mask, GR),
            tl.zeros([BM, GR], tl.float32),
        )
    if UR > 0:
        u_lows, d_u_low = (
            _low(u_low, u_row, u_rank, rows, row_mask, UR),
            tl.zeros([BM, UR], tl.float32),
        )
    if DR > 0:
        d_lows = _low(d_act_low, d_row, d_rank, rows, row_mask, DR)
    for tile in range(tiles):
        columns = (tl.program_id(0) * tiles + tile) * BN + tl.arange(0, BN)
        column_mask = columns < i
        mask = row_mask[:, None] & column_mask[None, :]
        at, gates = rows[:, None] * i + columns[None, :], rows[:, None] * row + columns[None, :]
        gate = tl.load(gate_up + gates, mask, 0.0).to(tl.float32)
        up = tl.load(gate_up + gates + i, mask, 0.0).to(tl.float32)
        if GR > 0:
            g_weights = _weight(g_weight, g_n, g_k, g_rank, columns, column_mask, GR)
            gate += g_scale * tl.dot(g_lows, g_weights, input_precision="ieee")
        if UR > 0:
            u_weights = _weight(u_weight, u_n, u_k, u_rank, columns, column_mask, UR)
            up += u_scale * tl.dot(u_lows, u_weights, input_precision="ieee")
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        if BACKWARD:
            d = tl.load(act + at, mask, 0.0).to(tl.float32)
            if DR > 0:
                d_weights = _weight(d_weight, d_n, d_k, d_rank, columns, column_mask, DR)
                d += d_scale * tl.dot(d_lows, d_weights, input_precision="ieee")
            d_gate = (d * up * (sigmoid + silu * (1 - sigmoid))).to(gate_up.dtype.element_ty)
            d_up = (d * silu).to(gate_up.dtype.element_ty)
            tl.store(gate_up + gates, d_gate, mask)
            tl.store(gate_up + gates + i, d_up, mask)
            if GR > 0:
                d_g_low = tl.dot(d_gate, tl.trans(g_weights), d_g_low, input_precision="ieee")
            if UR > 0:
                d_u_low = tl.dot(d_up, tl.trans(u_weights), d_u_low, input_precision="ieee")
        tl.store(act + at, (silu * up).to(act.dtype.element_ty), mask)
    if BACKWARD:
        into = d_low + (tl.program_id(0) * tokens + rows[:, None]) * (g_rank + u_rank)
        if GR > 0:
            k = tl.arange(0, GR)[None, :]
            tl.store(into + k, g_scale * d_g_low, row_mask[:, None] & (k < g_rank))
        if UR > 0:
            k = tl.arange(0, UR)[None, :]
            tl.store(into + g_rank + k, u_scale * d_u_low, row_mask[:, None] & (k < u_rank))


@triton.jit
def _add_rotate(
    y, row, out, out_row, cos, sin, table_row, norm, eps, low, low_row, weight, weight_n, weight_k, rank, scale, tokens,
    R: tl.constexpr, TURN: tl.constexpr, NORM: tl.constexpr, APART: tl.constexpr, HALF: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    row_mask = rows < tokens
    half = tl.arange(0, HALF)
    left, right = tl.program_id(0) * 2 * HALF + half, tl.program_id(0) * 2 * HALF + HALF + half
    mask = row_mask[:, None] & (half < HALF)[None, :]
    first = tl.load(y + rows[:, None] * row + left[None, :], mask, 0.0).to(tl.float32)
    second = tl.load(y + rows[:, None] * row + right[None, :], mask, 0.0).to(tl.float32)
    if R > 0:
        lows = _low(low, low_row, rank, rows, row_mask, R)
        weights = _weight(weight, weight_n, weight_k, rank, left, left >= 0, R)
        first += scale * tl.dot(lows, weights, input_precision="ieee")
        weights = _weight(weight, weight_n, weight_k, rank, right, right >= 0, R)
        second += scale * tl.dot(lows, weights, input_precision="ieee")
        if APART:
            held1, held2 = first.to(y.dtype.element_ty), second.to(y.dtype.element_ty)
            tl.store(y + rows[:, None] * row + left[None, :], held1, mask)
            tl.store(y + rows[:, None] * row + right[None, :], held2, mask)
            first, second = (
                held1.to(tl.float32),
                held2.to(tl.float32),
            )  # what the backward will read
    if NORM:
        rstd = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + eps)
        first *= rstd[:, None] * tl.load(norm + half).to(tl.float32)[None, :]
        second *= rstd[:, None] * tl.load(norm + HALF + half).to(tl.float32)[None, :]
    if TURN:
        at = rows[:, None] * table_row + half[None, :]
        c, s = (
            tl.load(cos + at, mask, 0.0).to(tl.float32),
            tl.load(sin + at, mask, 0.0).to(tl.float32),
        )
        first, second = first * c - second * s, second * c + first * s
    tl.store(out + rows[:, None] * out_row + left[None, :], first.to(y.dtype.element_ty), mask)
    tl.store(out + rows[:, None] * out_row + right[None, :], second.to(y.dtype.element_ty), mask)


@triton.jit
def _head_norm_backward(d, d_row, y, row, norm, eps, tokens, D: tl.constexpr, BM: tl.constexpr):
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    lane = tl.arange(0, D)
    columns = tl.program_id(0) * D + lane
    mask = (rows < tokens)[:, None] & (lane < D)[None, :]
    unit = tl.load(y + rows[:, None] * row + columns[None, :], mask, 0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(unit * unit, 1) / D + eps)[:, None]
    unit *= rstd
    into = d + rows[:, None] * d_row + columns[None, :]
    scaled = tl.load(into, mask, 0.0).to(tl.float32) * tl.load(norm + lane).to(tl.float32)[None, :]
    found = rstd * (scaled - unit * (tl.sum(scaled * unit, 1) / D)[:, None])
    tl.store(into, found.to(d.dtype.element_ty), mask)


def _lora(added: LowRank | None, held: torch.Tensor) -> tuple[tuple[Any, ...], int]:
    """A kernel's arguments for what is added, and its rank as a tile's; 0 where nothing is."""
    if added is None:
        return (held, 0, held, 0, 0, 0, 0.0), 0
    low, weight, scale = added
    assert low.stride(1) == 1 and low.dtype == weight.dtype
    arguments = (low, low.stride(0), weight, *weight.stride(), low.shape[1], scale)
    return arguments, max(16, triton.next_power_of_2(low.shape[1]))


def add(y: torch.Tensor, added: LowRank | None, residual: torch.Tensor) -> torch.Tensor:
    """y + added + residual."""
    (tokens, n), (lora, rank) = y.shape, _lora(added, y)
    assert residual.is_contiguous() and y.stride(1) == 1
    out, (rows, columns, warps) = torch.empty_like(residual), _ADD
    grid = (triton.cdiv(n, columns), triton.cdiv(tokens, rows))
    _add[grid](
        y, y.stride(0), residual, out, *lora, tokens, n, rank, rows, columns, num_warps=warps
    )
    return out


def swiglu(
    gate_up: torch.Tensor, gate_added: LowRank | None, up_added: LowRank | None
) -> torch.Tensor:
    """gate_up [T, 2 i] -> [T, i]."""
    act = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    _run_swiglu(gate_up, act, None, (gate_added, up_added, None), _SWIGLU)
    return act


def swiglu_backward_(
    d_act: torch.Tensor,
    gate_up: torch.Tensor,
    gate_added: LowRank | None,
    up_added: LowRank | None,
    d_act_added: LowRank | None,
    d_low: torch.Tensor | None,
) -> None:
    """d_act becomes the activation, gate_up its own gradient, d_low that of low."""
    ranks = sum(added.low.shape[1] for added in (gate_added, up_added) if added is not None)
    parts = torch.empty(
        _SWIGLU_BACKWARD[3], len(d_act), ranks, dtype=torch.float32, device=d_act.device
    )
    _run_swiglu(gate_up, d_act, parts, (gate_added, up_added, d_act_added), _SWIGLU_BACKWARD)
    if d_low is not None:
        d_low[:, ranks:] = 0
        d_low[:, :ranks] = parts.sum(0)


def _run_swiglu(
    gate_up: torch.Tensor,
    act: torch.Tensor,
    d_low: torch.Tensor | None,
    added: tuple[LowRank | None, ...],
    tile: tuple[int, int, int, int],
) -> None:
    (tokens, width), (rows, columns, warps, parts) = act.shape, tile
    assert gate_up.stride(1) == 1 and act.is_contiguous()
    loras = [_lora(part, act) for part in added]
    wide, stages = max(rank for _, rank in loras) > _TUNED_RANK or act.dtype == torch.float32, 3
    if wide:  # tuned tiles would not fit into a processor's shared memory
        rows, columns, stages = 32, 32 if act.dtype == torch.float32 else 64, 1
    arguments = [value for values, _ in loras for value in values]
    tiles, backward = triton.cdiv(triton.cdiv(width, columns), parts), d_low is not None
    into = act if d_low is None else d_low
    _swiglu[(parts, triton.cdiv(tokens, rows))](
        gate_up, gate_up.stride(0), act, into, tokens, width, tiles, *arguments, *(rank for _, rank in loras),
        backward, rows, columns, num_warps=warps, num_stages=stages,
    )  # fmt: skip


def add_rotate_(
    y: torch.Tensor,
    heads: int,
    added: LowRank | None,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    norm: tuple[torch.Tensor, float] | None = None,
    out: torch.Tensor | None = None,
) -> None:
    """y [T, heads D] += added; `out`, or y, becomes y with its heads normed and turned, if there are norm and tables."""
    if added is None and tables is None and norm is None and out is None:
        return
    (tokens, width), (lora, rank) = y.shape, _lora(added, y)
    (cos, sin), (weight, eps), into = tables or (y, y), norm or (y, 0.0), y if out is None else out
    _add_rotate[(heads, triton.cdiv(tokens, _ROTATE_TOKENS))](
        y, y.stride(0), into, into.stride(0), cos, sin, cos.stride(0), weight, eps, *lora, tokens, rank,
        tables is not None, norm is not None, out is not None, width // heads // 2, _ROTATE_TOKENS, num_warps=_ROTATE_WARPS,
    )  # fmt: skip


def head_norm_backward_(
    d: torch.Tensor, y: torch.Tensor, heads: int, norm: tuple[torch.Tensor, float]
) -> None:
    """d [T, heads D], the gradient of y's normed heads, becomes that of y."""
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
