"""Causal attention within the samples of a packed micro-batch, registered as a
transformers attention function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.nn import functional
from transformers import AttentionInterface

from pipelines.core.errors import UserError
from pipelines.layers.bounds import SampleBounds
from pipelines.layers.kernels import supports_kernels

PACKED = "loraforge_packed"
"""The name under which transformers finds `packed_attention`."""

_MAX_FLASH_HEAD = 256

_HARMLESS = {
    "position_ids",  # already applied: the rotation happens before attention
    "use_cache",  # training has no cache
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "num_items_in_batch",
}
"""Arguments of transformers' attention functions that do not change what attention computes."""

_REASONS = {
    "s_aux": "has attention sinks (s_aux), which packed attention does not compute",
    "sinks": "has attention sinks, which packed attention does not compute",
    "softcap": "caps its scores (softcap), which packed attention does not compute",
    "indices": "reads selected tokens only (indices), which packed attention does not compute",
    "position_bias": "adds a bias per position, which packed attention does not compute",
    "is_causal": "reads later tokens, too, which packed attention does not compute",
    "attention_mask": "has a mask of its own, which packed attention does not compute",
}


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    bounds: SampleBounds | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query [1, H, T, D] to key and value [1, K, T, D] -> [1, T, H, D].

    Raises UserError when `bounds` is missing, because samples would attend to each other, and for
    every argument with which the base's own attention would compute something else.
    """
    if bounds is None:
        raise UserError(
            f"model.base: {type(module).__name__} does not pass on where the samples of a pack "
            "begin (bounds), so they would attend to each other: choose a base of another "
            "architecture"
        )
    _check_arguments(module, others | {"attention_mask": attention_mask}, bounds.max_seqlen)
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    # The kernel takes heads of one size; those of latent attention (MLA) have two.
    if supports_flash(query) and query.shape[-1] == value.shape[-1] and _fits_flash(query):
        return cast(torch.Tensor, _Flash.apply(query, key, value, bounds, scaling))[None], None
    return padded_attention(query, key, value, bounds, scaling)[None], None


def _check_arguments(module: Any, arguments: Mapping[str, Any], max_seqlen: int) -> None:
    """Check the arguments that a layer passes to its attention and `packed_attention` does not use.

    Raises UserError for one that would change the result, such as sinks, or a window that is
    shorter than `max_seqlen`, the longest sample of the pack in tokens.
    """
    given = {"is_causal": getattr(module, "is_causal", True), **arguments}
    for name, value in given.items():
        if value is None or name in _HARMLESS or (name == "is_causal" and value):
            continue
        reason = _REASONS.get(name, f"takes {name}, which packed attention does not know")
        advice = "choose a base of another architecture"
        if name == "sliding_window":
            if value >= max_seqlen:
                continue
            reason = f"reads the last {value} tokens only, and a sample has {max_seqlen}"
            advice = f"set data.row_tokens={value} or less"
        raise UserError(
            f"model.base cannot be trained in packs: its {type(module).__name__} {reason}: {advice}"
        )


def supports_flash(tensor: torch.Tensor) -> bool:
    """True if variable-length flash attention runs on the tensor's device and dtype.

    It needs half precision and a GPU of compute capability 8.0 or higher.
    """
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.is_cuda and half and supports_kernels(tensor.device)


def _fits_flash(tensor: torch.Tensor) -> bool:
    """Whether the kernel takes heads of this size."""
    return tensor.shape[-1] % 8 == 0 and tensor.shape[-1] <= _MAX_FLASH_HEAD


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
    # Padding comes after a sample's tokens, so the causal mask hides it from all of them.
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
    """query [T, H, D], key and value [T, K, D] -> [T, H, D]. GPU and half precision only.

    Also returns what `flash_backward` needs: the log-sum-exp and the state of the random numbers.
    """
    # The operator below torch.nn.attention.varlen, whose gradients for fewer key-value heads than
    # query heads came only with torch 2.13.
    cu_seqlens, longest = bounds.cu_seqlens, bounds.max_seqlen
    out, *saved = torch.ops.aten._flash_attention_forward(
        query, key, value, cu_seqlens, cu_seqlens, longest, longest, 0.0, True, False, scale=scaling
    )
    return out, saved[:3]


def flash_backward(
    d_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    saved: list[torch.Tensor],
    bounds: SampleBounds,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, each in its own shape."""
    cu_seqlens, longest, (lse, *state) = bounds.cu_seqlens, bounds.max_seqlen, saved
    return torch.ops.aten._flash_attention_backward(
        d_out,
        query,
        key,
        value,
        out,
        lse,
        cu_seqlens,
        cu_seqlens,
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
        out, saved = flash_forward(query, key, value, bounds, scaling)
        ctx.bounds, ctx.scaling = bounds, scaling
        ctx.save_for_backward(query, key, value, out, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value, out, *saved = ctx.saved_tensors
        d_out = grads[0].contiguous()
        return (
            *flash_backward(d_out, query, key, value, out, saved, ctx.bounds, ctx.scaling),
            None,
            None,
        )


AttentionInterface.register(PACKED, packed_attention)
