"""Causal attention within short samples, in Triton: forward, and a backward that turns its gradients back by itself.

Instruction samples have some hundred tokens, for which general kernels spend most of their time on what long sequences
need: atomics for dq, copies of keys for their query heads, empty blocks. Here a program has one block of one sample's
tokens; blocks come from a table that the micro-batch brings (`SampleBounds.blocks`). The algorithm is FlashAttention-2's
(Dao 2023, arXiv:2307.08691). T = tokens, H / K = query / key-value heads, D = head size; q, k, v lie in qkv [T, (H + 2 K) D].
"""

# Triton is there only beside a GPU build of torch, and a kernel is called by a grid in brackets.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipelines.layers.bounds import BLOCK

_LOG2E = 1.4426950408889634


@triton.jit
def _forward(
    qkv, out, lse, blocks, row, tokens, scale, HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    entry, head = blocks + 3 * tl.program_id(1), tl.program_id(0)
    start, end, first = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    lane, within = tl.arange(0, D), tl.arange(0, B)
    rows = first + within
    mask = (rows < end)[:, None]
    q = tl.load(qkv + rows.to(tl.int64)[:, None] * row + head * D + lane[None, :], mask, 0.0)
    keys = qkv + (HEADS + head // GROUP) * D + lane[None, :]
    values = keys + (HEADS // GROUP) * D
    peak = tl.full([B], -float("inf"), tl.float32)
    total = tl.zeros([B], tl.float32)
    found = tl.zeros([B, D], tl.float32)
    for at in range(start, tl.minimum(first + B, end), B):
        columns = at + within
        there = (columns < end)[:, None]
        offset = columns.to(tl.int64)[:, None] * row
        k = tl.load(keys + offset, there, 0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(rows[:, None] >= columns[None, :], score, -float("inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        p = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(values + offset, there, 0.0)
        found = tl.dot(p.to(v.dtype), v, found * shrink[:, None], input_precision="ieee")
        peak = higher
    at = rows.to(tl.int64)[:, None] * (HEADS * D) + head * D + lane[None, :]
    tl.store(out + at, (found / total[:, None]).to(out.dtype.element_ty), mask)
    tl.store(lse + head * tokens + rows, peak + tl.log2(total), rows < end)


@triton.jit
def _turned_back(first, second, cos, sin, rows, table_row, mask, HALF: tl.constexpr):
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
    mask, wide = (rows < end)[:, None], rows.to(tl.int64)[:, None]
    q1 = tl.load(qkv + wide * row + head * D + half[None, :], mask, 0.0)
    q2 = tl.load(qkv + wide * row + head * D + HALF + half[None, :], mask, 0.0)
    at = wide * (HEADS * D) + head * D + lane[None, :]
    do = tl.load(d_out + at, mask, 0.0)
    o = tl.load(out + at, mask, 0.0)
    of_rows = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + head * tokens + rows, of_rows, rows < end)
    known = tl.load(lse + head * tokens + rows, rows < end, 0.0)
    keys = qkv + (HEADS + head // GROUP) * D + half[None, :]
    values = qkv + (HEADS + HEADS // GROUP + head // GROUP) * D + lane[None, :]
    dq1, dq2 = tl.zeros([B, HALF], tl.float32), tl.zeros([B, HALF], tl.float32)
    for at in range(start, tl.minimum(first + B, end), B):
        columns = at + within
        there = (columns < end)[:, None]
        offset = columns.to(tl.int64)[:, None] * row
        k1, k2 = tl.load(keys + offset, there, 0.0), tl.load(keys + offset + HALF, there, 0.0)
        v = tl.load(values + offset, there, 0.0)
        score = tl.dot(q1, tl.trans(k1), input_precision="ieee")
        score = tl.dot(q2, tl.trans(k2), score, input_precision="ieee")
        p = tl.exp2(score * scale2 - known[:, None])
        p = tl.where(rows[:, None] >= columns[None, :], p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = (p * (dp - of_rows[:, None]) * scale).to(k1.dtype)
        dq1 = tl.dot(ds, k1, dq1, input_precision="ieee")
        dq2 = tl.dot(ds, k2, dq2, input_precision="ieee")
    dq1, dq2 = _turned_back(dq1, dq2, cos, sin, rows, table_row, mask, HALF)
    into = d_qkv + wide * row + head * D + half[None, :]
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
    mask, wide = (columns < end)[:, None], columns.to(tl.int64)[:, None]
    key_at = wide * row + (HEADS + kv_head) * D + half[None, :]
    value_at = wide * row + (HEADS + HEADS // GROUP + kv_head) * D + lane[None, :]
    k1, k2 = tl.load(qkv + key_at, mask, 0.0), tl.load(qkv + key_at + HALF, mask, 0.0)
    v = tl.load(qkv + value_at, mask, 0.0)
    dk1, dk2 = tl.zeros([B, HALF], tl.float32), tl.zeros([B, HALF], tl.float32)
    dv = tl.zeros([B, D], tl.float32)
    for at in range(first, end, B):
        rows = at + within
        there, across = (rows < end)[:, None], rows.to(tl.int64)[:, None]
        for member in range(GROUP):
            head = kv_head * GROUP + member
            q1 = tl.load(qkv + across * row + head * D + half[None, :], there, 0.0)
            q2 = tl.load(qkv + across * row + head * D + HALF + half[None, :], there, 0.0)
            do = tl.load(d_out + across * (HEADS * D) + head * D + lane[None, :], there, 0.0)
            known = tl.load(lse + head * tokens + rows, rows < end, 0.0)
            of_rows = tl.load(delta + head * tokens + rows, rows < end, 0.0)
            score = tl.dot(k1, tl.trans(q1), input_precision="ieee")
            score = tl.dot(k2, tl.trans(q2), score, input_precision="ieee")
            p = tl.exp2(score * scale2 - known[None, :])
            p = tl.where((rows[None, :] >= columns[:, None]) & (rows < end)[None, :], p, 0.0)
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
            dp = tl.dot(v, tl.trans(do), input_precision="ieee")
            ds = (p * (dp - of_rows[None, :]) * scale).to(q1.dtype)
            dk1 = tl.dot(ds, q1, dk1, input_precision="ieee")
            dk2 = tl.dot(ds, q2, dk2, input_precision="ieee")
    dk1, dk2 = _turned_back(dk1, dk2, cos, sin, columns, table_row, mask, HALF)
    tl.store(d_qkv + key_at, dk1.to(d_qkv.dtype.element_ty), mask)
    tl.store(d_qkv + key_at + HALF, dk2.to(d_qkv.dtype.element_ty), mask)
    tl.store(d_qkv + value_at, dv.to(d_qkv.dtype.element_ty), mask)


def short_forward(
    qkv: torch.Tensor, heads: int, group: int, blocks: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """qkv [T, (H + 2 K) D] with q and k already turned -> [T, H D], and the log-sum-exp [H, T] in base 2."""
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
    """Into d_qkv the gradient of qkv as it was before q and k were turned by `tables` (cos, sin [T, D])."""
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
