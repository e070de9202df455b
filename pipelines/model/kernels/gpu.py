"""The kernels in Triton: one program a row, or a tile where an adapter's part is added. `reference` says what they mean."""

# Triton is there only beside a GPU build of torch, and a kernel is called by a grid in brackets.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from pipelines.model.kernels import FP8_MAX, LowRank

# Tokens and columns of a program that adds an adapter's part, and its warps: the fastest of twelve on an H200.
_TILE, _WARPS = (64, 64), 4
_FORWARD_TILE, _FORWARD_WARPS = (32, 128), 8


def _block(width: int) -> tuple[int, int]:
    """A row's block size and its warps."""
    block = triton.next_power_of_2(width)
    return block, min(16, max(4, block // 512))


@triton.jit
def _rms(x, weight, y, rstd, eps, h, RECOMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < h
    value = tl.load(x + row * h + at, mask, 0.0).to(tl.float32)
    if RECOMPUTE:
        scale = tl.load(rstd + row)
    else:
        scale = tl.rsqrt(tl.sum(value * value) / h + eps)
        tl.store(rstd + row, scale)
    value = value * scale * tl.load(weight + at, mask, 0.0).to(tl.float32)
    tl.store(y + row * h + at, value.to(y.dtype.element_ty), mask)


@triton.jit
def _rms_backward(dy, x, weight, rstd, residual, dx, h, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < h
    scale = tl.load(rstd + row)
    unit = tl.load(x + row * h + at, mask, 0.0).to(tl.float32) * scale
    scaled = tl.load(dy + row * h + at, mask, 0.0).to(tl.float32) * tl.load(weight + at, mask, 0.0).to(tl.float32)
    value = scale * (scaled - unit * (tl.sum(scaled * unit) / h))
    if RESIDUAL:
        value += tl.load(residual + row * h + at, mask, 0.0).to(tl.float32)
    tl.store(dx + row * h + at, value.to(dx.dtype.element_ty), mask)


@triton.jit
def _added(low, low_row, weight, weight_n, weight_k, rank, rows, columns, row_mask, column_mask, R: tl.constexpr):
    """low [T, rank] times weight [n, rank] transposed, for one tile, in fp32."""
    k = tl.arange(0, R)
    a = tl.load(low + rows[:, None] * low_row + k[None, :], row_mask[:, None] & (k[None, :] < rank), 0.0)
    at = columns[None, :] * weight_n + k[:, None] * weight_k
    b = tl.load(weight + at, column_mask[None, :] & (k[:, None] < rank), 0.0)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _add(
    y, residual, low, low_row, weight, weight_n, weight_k, rank, scale, tokens, n,
    R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    row_mask, column_mask = rows < tokens, columns < n
    mask = row_mask[:, None] & column_mask[None, :]
    at = rows[:, None] * n + columns[None, :]
    value = tl.load(y + at, mask, 0.0).to(tl.float32) + tl.load(residual + at, mask, 0.0).to(tl.float32)
    if R > 0:
        value += scale * _added(low, low_row, weight, weight_n, weight_k, rank, rows, columns, row_mask, column_mask, R)
    tl.store(y + at, value.to(y.dtype.element_ty), mask)


@triton.jit
def _swiglu(
    gate_up, act, d_act, tokens, i,
    g_low, g_row, g_weight, g_n, g_k, g_rank, g_scale,
    u_low, u_row, u_weight, u_n, u_k, u_rank, u_scale,
    d_low, d_row, d_weight, d_n, d_k, d_rank, d_scale,
    GR: tl.constexpr, UR: tl.constexpr, DR: tl.constexpr, BACKWARD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    row_mask, column_mask = rows < tokens, columns < i
    mask = row_mask[:, None] & column_mask[None, :]
    at, gates = rows[:, None] * i + columns[None, :], rows[:, None] * 2 * i + columns[None, :]
    gate = tl.load(gate_up + gates, mask, 0.0).to(tl.float32)
    if GR > 0:
        gate += g_scale * _added(g_low, g_row, g_weight, g_n, g_k, g_rank, rows, columns, row_mask, column_mask, GR)
    up = tl.load(gate_up + gates + i, mask, 0.0).to(tl.float32)
    if UR > 0:
        up += u_scale * _added(u_low, u_row, u_weight, u_n, u_k, u_rank, rows, columns, row_mask, column_mask, UR)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    if BACKWARD:
        d = tl.load(d_act + at, mask, 0.0).to(tl.float32)
        if DR > 0:
            d += d_scale * _added(d_low, d_row, d_weight, d_n, d_k, d_rank, rows, columns, row_mask, column_mask, DR)
        d_gate = d * up * (sigmoid + silu * (1 - sigmoid))
        tl.store(gate_up + gates, d_gate.to(gate_up.dtype.element_ty), mask)
        tl.store(gate_up + gates + i, (d * silu).to(gate_up.dtype.element_ty), mask)
    tl.store(act + at, (silu * up).to(act.dtype.element_ty), mask)


@triton.jit
def _rotate(
    source, out, cos, sin, source_row, out_row, table_row, heads, sign, HALF: tl.constexpr, HEADS: tl.constexpr
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
    tl.store(out + row * out_row + at + HALF, (second * c + first * s).to(out.dtype.element_ty), mask)


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
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * width
    peak, total = -float("inf"), 0.0
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(line + at, at < width, -float("inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(value))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(value - higher))
        peak = higher
    target, weight = tl.load(targets + row), tl.load(weights + row)
    tl.store(losses + row, tl.log(total) + peak - tl.load(line + target).to(tl.float32))
    tl.debug_barrier()  # every lane has read the target's logit before any writes over it
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(line + at, at < width, -float("inf")).to(tl.float32)
        value = tl.exp(value - peak) / total - tl.where(at == target, 1.0, 0.0)
        tl.store(line + at, (value * weight).to(logits.dtype.element_ty), at < width)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, h] -> normalized x and 1 / rms [T]."""
    y, rstd = torch.empty_like(x), torch.empty(len(x), dtype=torch.float32, device=x.device)
    block, warps = _block(x.shape[1])
    _rms[(len(x),)](x, weight, y, rstd, eps, x.shape[1], False, block, num_warps=warps)
    return y, rstd


def rms_apply(x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """The normalized x from its 1 / rms."""
    y = torch.empty_like(x)
    block, warps = _block(x.shape[1])
    _rms[(len(x),)](x, weight, y, rstd, 0.0, x.shape[1], True, block, num_warps=warps)
    return y


def rms_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """dx [T, h], `residual` added."""
    dx = torch.empty_like(x)
    block, warps = _block(x.shape[1])
    added = x if residual is None else residual.contiguous()
    _rms_backward[(len(x),)](dy, x, weight, rstd, added, dx, x.shape[1], residual is not None, block, num_warps=warps)
    return dx


def _lora(added: LowRank | None, held: torch.Tensor) -> tuple[tuple[Any, ...], int]:
    """A kernel's arguments for what is added, and its rank as a tile's; 0 where nothing is."""
    if added is None:
        return (held, 0, held, 0, 0, 0, 0.0), 0
    low, weight, scale = added
    assert low.stride(1) == 1 and low.dtype == weight.dtype
    arguments = (low, low.stride(0), weight, *weight.stride(), low.shape[1], scale)
    return arguments, max(16, triton.next_power_of_2(low.shape[1]))


def add_(y: torch.Tensor, added: LowRank | None, residual: torch.Tensor) -> None:
    """y += added + residual, in place."""
    (tokens, n), (lora, rank) = y.shape, _lora(added, y)
    assert residual.is_contiguous()
    grid = (triton.cdiv(n, _TILE[1]), triton.cdiv(tokens, _TILE[0]))
    _add[grid](y, residual, *lora, tokens, n, rank, *_TILE, num_warps=_WARPS)


def swiglu(gate_up: torch.Tensor, gate_added: LowRank | None, up_added: LowRank | None) -> torch.Tensor:
    """gate_up [T, 2 i] -> [T, i]."""
    act = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    _run_swiglu(gate_up, act, None, (gate_added, up_added, None))
    return act


def swiglu_backward_(
    d_act: torch.Tensor,
    gate_up: torch.Tensor,
    gate_added: LowRank | None,
    up_added: LowRank | None,
    d_act_added: LowRank | None,
) -> None:
    """d_act becomes the activation, gate_up its own gradient."""
    _run_swiglu(gate_up, d_act, d_act, (gate_added, up_added, d_act_added))


def _run_swiglu(
    gate_up: torch.Tensor, act: torch.Tensor, d_act: torch.Tensor | None, added: tuple[LowRank | None, ...]
) -> None:
    tokens, width = act.shape
    loras = [_lora(part, act) for part in added]
    arguments = [value for values, _ in loras for value in values]
    tile, warps = (_FORWARD_TILE, _FORWARD_WARPS) if d_act is None else (_TILE, _WARPS)
    grid = (triton.cdiv(width, tile[1]), triton.cdiv(tokens, tile[0]))
    ranks = [rank for _, rank in loras]
    _swiglu[grid](gate_up, act, act, tokens, width, *arguments, *ranks, d_act is not None, *tile, num_warps=warps)


def rotate(
    source: torch.Tensor, out: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool = False
) -> None:
    """Rotary embedding of source [T, heads, D] into `out`; heads lie next to each other."""
    tokens, heads, size = source.shape
    assert source.stride()[1:] == (size, 1) and out.stride()[1:] == (size, 1)
    strides, sign = (source.stride(0), out.stride(0), cos.stride(0)), -1.0 if inverse else 1.0
    _rotate[(tokens,)](source, out, cos, sin, *strides, heads, sign, size // 2, triton.next_power_of_2(heads))


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, h] -> float8 [T, h] and scales [T, 1]."""
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    block, warps = _block(x.shape[1])
    _quantize[(len(x),)](x, out, scale, x.stride(0), x.shape[1], FP8_MAX, block, num_warps=warps)
    return out, scale


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Losses [M]; logits [M, V] become their gradient."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    given = (targets.contiguous(), weights.contiguous())
    _cross_entropy[(len(logits),)](logits, *given, losses, logits.shape[1], 8192, num_warps=16)
    return losses
