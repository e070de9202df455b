"""Packed attention."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.nn import functional
from transformers import AttentionInterface

from pipelines.layers.bounds import SampleBounds
from pipelines.layers.kernels import capable

PACKED = "loraforge_packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    bounds: SampleBounds | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].

    Raises ValueError when `bounds` is missing: without it samples would attend to each other.
    """
    if bounds is None:
        raise ValueError("packed attention needs the micro-batch's sample bounds")
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    if flash_runs(query):
        return cast(torch.Tensor, _Flash.apply(query, key, value, bounds, scaling))[None], None
    return padded_attention(query, key, value, bounds, scaling)[None], None


def flash_runs(tensor: torch.Tensor) -> bool:
    """Whether variable-length flash attention runs on it: half precision on a GPU of compute capability 8.0 or more."""
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.is_cuda and half and capable(tensor.device)


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: SampleBounds,
    scaling: float | None,
) -> torch.Tensor:
    """query [T, H, D], key and value [T, K, D] -> [T, H, D], on any device in any dtype."""
    gather, scatter = bounds.padded
    q, k, v = (tensor[gather].transpose(1, 2) for tensor in (query, key, value))
    out = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(0, 1)[scatter]


def flash_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: SampleBounds,
    scaling: float | None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """query [T, H, D], key and value [T, K, D] -> [T, H, D], and what the backward needs besides. GPU, half precision.

    The operator beneath torch.nn.attention.varlen, because that one's gradients of fewer key-value heads came in 2.13.
    """
    ends, longest = bounds.starts, bounds.longest
    out, *held = torch.ops.aten._flash_attention_forward(
        query, key, value, ends, ends, longest, longest, 0.0, True, False, scale=scaling
    )
    return out, held[:3]


def flash_backward(
    d_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    held: list[torch.Tensor],
    bounds: SampleBounds,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, each of its own shape."""
    ends, longest, (lse, *state) = bounds.starts, bounds.longest, held
    return torch.ops.aten._flash_attention_backward(
        d_out,
        query,
        key,
        value,
        out,
        lse,
        ends,
        ends,
        longest,
        longest,
        0.0,
        True,
        *state,
        scale=scaling,
    )


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bounds: SampleBounds,
        scaling: float | None,
    ) -> torch.Tensor:
        out, held = flash_forward(query, key, value, bounds, scaling)
        ctx.bounds, ctx.scaling = bounds, scaling
        ctx.save_for_backward(query, key, value, out, *held)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value, out, *held = ctx.saved_tensors
        d_out = grads[0].contiguous()
        return (
            *flash_backward(d_out, query, key, value, out, held, ctx.bounds, ctx.scaling),
            None,
            None,
        )


AttentionInterface.register(PACKED, packed_attention)
