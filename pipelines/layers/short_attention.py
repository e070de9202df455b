"""Causal attention within short samples, in Triton, and a backward that also undoes the rotation.

Instruction samples have a few hundred tokens. General kernels spend most of their time there on
what long sequences need: atomic additions for dq, copies of keys for each query head, empty blocks.
Here a program has one block of one sample's tokens, from a table that comes with the micro-batch
(`SampleBounds.blocks`). The algorithm is FlashAttention-2 (Dao 2023, arXiv:2307.08691).

T = tokens, H / K = query / key-value heads (HEADS, HEADS // GROUP), D = head size, B = tokens per
block. q, k and v are the columns of qkv [T, (H + 2 K) D], read in place. Scores are multiplied by
log2(e), so that softmax runs on exp2, which the hardware has; `lse` is in base 2 accordingly.
"""

# Triton is installed only with a GPU build of torch, and kernels are called by kernel[grid](...).
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipelines.layers.bounds import BLOCK

_LOG2E = 1.4426950408889634


@triton.jit
def _forward(
    qkv, out, lse, blocks, row, tokens, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    entry, head = blocks + 3 * tl.program_id(1), tl.program_id(0)
    start, end, first = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    lane, within = tl.arange(0, D), tl.arange(0, B)
    rows = first + within
    mask = (rows < end)[:, None]
    q = tl.load(qkv + rows.to(tl.int64)[:, None] * row + head * D + lane[None, :], mask, 0.0)
    keys = qkv + (HEADS + head // GROUP) * D + lane[None, :]
    values = keys + (HEADS // GROUP) * D
    max_score = tl.full([B], -float("inf"), tl.float32)
    total = tl.zeros([B], tl.float32)
    acc = tl.zeros([B, D], tl.float32)
    # Key blocks from the sample's start to the diagonal block; later keys are in the future.
    for at in range(start, tl.minimum(first + B, end), B):
        columns = at + within
        column_mask = (columns < end)[:, None]
        offset = columns.to(tl.int64)[:, None] * row
        k = tl.load(keys + offset, column_mask, 0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(rows[:, None] >= columns[None, :], score, -float("inf"))
        new_max = tl.maximum(max_score, tl.max(score, 1))
        # Online softmax: a new maximum rescales the sums of the earlier blocks.
        p = tl.exp2(score - new_max[:, None])
        shrink = tl.exp2(max_score - new_max)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(values + offset, column_mask, 0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        max_score = new_max
    at = rows.to(tl.int64)[:, None] * (HEADS * D) + head * D + lane[None, :]
    tl.store(out + at, (acc / total[:, None]).to(out.dtype.element_ty), mask)
    tl.store(lse + head * tokens + rows, max_score + tl.log2(total), rows < end)


@triton.jit
def _rotate_back(first, second, cos, sin, rows, table_row, mask, HALF: tl.constexpr):
    """The gradient before the rotation: the transpose of a rotation is its inverse."""
    at = rows.to(tl.int64)[:, None] * table_row + tl.arange(0, HALF)[None, :]
    c, s = tl.load(cos + at, mask, 0.0).to(tl.float32), tl.load(sin + at, mask, 0.0).to(tl.float32)
    return first * c + second * s, second * c - first * s


@triton.jit
def _backward_q(
    qkv, d_qkv, out, d_out, lse, delta, cos, sin, blocks, row, table_row, tokens, scale, scale2,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = D // 2
    entry, head = blocks + 3 * tl.program_id(1), tl.program_id(0)
    start, end, first = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    lane, half, within = tl.arange(0, D), tl.arange(0, HALF), tl.arange(0, B)
    rows = first + within
    mask, row64 = (rows < end)[:, None], rows.to(tl.int64)[:, None]
    # q, k and their gradients are handled in halves, because the rotation mixes the halves.
    q1 = tl.load(qkv + row64 * row + head * D + half[None, :], mask, 0.0)
    q2 = tl.load(qkv + row64 * row + head * D + HALF + half[None, :], mask, 0.0)
    at = row64 * (HEADS * D) + head * D + lane[None, :]
    do = tl.load(d_out + at, mask, 0.0)
    o = tl.load(out + at, mask, 0.0)
    # delta = sum(do * o) per row, which the softmax's backward subtracts; `_backward_kv` reads it.
    delta_rows = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + head * tokens + rows, delta_rows, rows < end)
    lse_rows = tl.load(lse + head * tokens + rows, rows < end, 0.0)
    keys = qkv + (HEADS + head // GROUP) * D + half[None, :]
    values = qkv + (HEADS + HEADS // GROUP + head // GROUP) * D + lane[None, :]
    dq1, dq2 = tl.zeros([B, HALF], tl.float32), tl.zeros([B, HALF], tl.float32)
    for at in range(start, tl.minimum(first + B, end), B):
        columns = at + within
        column_mask = (columns < end)[:, None]
        offset = columns.to(tl.int64)[:, None] * row
        k1, k2 = (
            tl.load(keys + offset, column_mask, 0.0),
            tl.load(keys + offset + HALF, column_mask, 0.0),
        )
        v = tl.load(values + offset, column_mask, 0.0)
        score = tl.dot(q1, tl.trans(k1), input_precision="ieee")
        score = tl.dot(q2, tl.trans(k2), score, input_precision="ieee")
        # The probabilities again, from the saved log-sum-exp; scale2 is scale * log2(e).
        p = tl.exp2(score * scale2 - lse_rows[:, None])
        p = tl.where(rows[:, None] >= columns[None, :], p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = (p * (dp - delta_rows[:, None]) * scale).to(k1.dtype)
        dq1 = tl.dot(ds, k1, dq1, input_precision="ieee")
        dq2 = tl.dot(ds, k2, dq2, input_precision="ieee")
    dq1, dq2 = _rotate_back(dq1, dq2, cos, sin, rows, table_row, mask, HALF)
    into = d_qkv + row64 * row + head * D + half[None, :]
    tl.store(into, dq1.to(d_qkv.dtype.element_ty), mask)
    tl.store(into + HALF, dq2.to(d_qkv.dtype.element_ty), mask)


@triton.jit
def _backward_kv(
    qkv, d_qkv, d_out, lse, delta, cos, sin, blocks, row, table_row, tokens, scale, scale2,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = D // 2
    entry, kv_head = blocks + 3 * tl.program_id(1), tl.program_id(0)
    end, first = tl.load(entry + 1), tl.load(entry + 2)
    lane, half, within = tl.arange(0, D), tl.arange(0, HALF), tl.arange(0, B)
    columns = first + within
    mask, row64 = (columns < end)[:, None], columns.to(tl.int64)[:, None]
    key_at = row64 * row + (HEADS + kv_head) * D + half[None, :]
    value_at = row64 * row + (HEADS + HEADS // GROUP + kv_head) * D + lane[None, :]
    k1, k2 = tl.load(qkv + key_at, mask, 0.0), tl.load(qkv + key_at + HALF, mask, 0.0)
    v = tl.load(qkv + value_at, mask, 0.0)
    dk1, dk2 = tl.zeros([B, HALF], tl.float32), tl.zeros([B, HALF], tl.float32)
    dv = tl.zeros([B, D], tl.float32)
    for at in range(first, end, B):
        rows = at + within
        column_mask, row64_q = (rows < end)[:, None], rows.to(tl.int64)[:, None]
        # All query heads of a group in one program: dk and dv are sums over them, without atomics.
        for member in range(GROUP):
            head = kv_head * GROUP + member
            q1 = tl.load(qkv + row64_q * row + head * D + half[None, :], column_mask, 0.0)
            q2 = tl.load(qkv + row64_q * row + head * D + HALF + half[None, :], column_mask, 0.0)
            do = tl.load(d_out + row64_q * (HEADS * D) + head * D + lane[None, :], column_mask, 0.0)
            lse_rows = tl.load(lse + head * tokens + rows, rows < end, 0.0)
            delta_rows = tl.load(delta + head * tokens + rows, rows < end, 0.0)
            score = tl.dot(k1, tl.trans(q1), input_precision="ieee")
            score = tl.dot(k2, tl.trans(q2), score, input_precision="ieee")
            p = tl.exp2(score * scale2 - lse_rows[None, :])
            p = tl.where((rows[None, :] >= columns[:, None]) & (rows < end)[None, :], p, 0.0)
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
            dp = tl.dot(v, tl.trans(do), input_precision="ieee")
            ds = (p * (dp - delta_rows[None, :]) * scale).to(q1.dtype)
            dk1 = tl.dot(ds, q1, dk1, input_precision="ieee")
            dk2 = tl.dot(ds, q2, dk2, input_precision="ieee")
    dk1, dk2 = _rotate_back(dk1, dk2, cos, sin, columns, table_row, mask, HALF)
    tl.store(d_qkv + key_at, dk1.to(d_qkv.dtype.element_ty), mask)
    tl.store(d_qkv + key_at + HALF, dk2.to(d_qkv.dtype.element_ty), mask)
    tl.store(d_qkv + value_at, dv.to(d_qkv.dtype.element_ty), mask)


def short_forward(
    qkv: torch.Tensor, heads: int, group: int, blocks: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """qkv [T, (H + 2 K) D] with q and k rotated -> [T, H D], and the log-sum-exp [H, T] in base 2.

    `heads` is H, `group` H / K and `blocks` that of SampleBounds.
    """
    tokens, size = len(qkv), qkv.shape[1] // (heads + 2 * heads // group)
    out = qkv.new_empty(tokens, heads * size)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=qkv.device)
    _forward[(heads, len(blocks))](
        qkv,
        out,
        lse,
        blocks,
        qkv.stride(0),
        tokens,
        scaling * _LOG2E,
        heads,
        group,
        size,
        BLOCK,
        num_stages=1,
    )
    return out, lse


def short_backward(
    d_out: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor],
    group: int,
    blocks: torch.Tensor,
    scaling: float,
    d_qkv: torch.Tensor,
) -> None:
    """Write into d_qkv the gradient of qkv before q and k were rotated by `tables` (cos, sin [T,
    D]).

    d_out and out are [T, H D]; qkv and lse are those of `short_forward`. d_qkv has qkv's strides.
    """
    heads, tokens = lse.shape
    size, delta = out.shape[1] // heads, torch.empty_like(lse)
    assert d_qkv.stride() == qkv.stride()
    cos, sin = tables
    common = (
        cos,
        sin,
        blocks,
        qkv.stride(0),
        cos.stride(0),
        tokens,
        scaling,
        scaling * _LOG2E,
        heads,
        group,
        size,
        BLOCK,
    )
    _backward_q[(heads, len(blocks))](qkv, d_qkv, out, d_out, lse, delta, *common, num_stages=2)
    _backward_kv[(heads // group, len(blocks))](
        qkv, d_qkv, d_out, lse, delta, *common, num_stages=2
    )
