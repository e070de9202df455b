"""Causal attention over packed rows, in which samples never see each other.

T = tokens of a micro-batch laid end to end, N = samples in it, H / K = query / key-value heads, D = head size.
Registered with transformers under `PACKED`; the sample boundaries travel as keyword arguments of the model's forward,
built once a micro-batch. On a GPU of Ampere's age or younger in half precision it is the variable-length flash attention that ships with torch;
elsewhere the samples are laid out as a padded [N, H, longest, D] batch for causal SDPA, so its cost is the samples',
not the row's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch.nn import functional
from transformers import AttentionInterface

from pipelines.contracts import UserError
from pipelines.model.kernels import capable
from pipelines.train.transfer import to_device

PACKED = "loraforge_packed"
BLOCK = 64  # tokens that a program of the fused layers' attention takes


@dataclass(frozen=True)
class SampleBounds:
    """Where samples lie in a micro-batch: cumulative starts [N + 1] int32, the longest, and their blocks of tokens.

    `blocks` [., 3] int32 has a sample's start and end and the first of at most BLOCK of its tokens.
    """

    starts: torch.Tensor
    longest: int
    blocks: torch.Tensor

    @staticmethod
    def of(lengths: torch.Tensor, device: torch.device | str | None = None) -> SampleBounds:
        """Bounds of samples with these lengths (int64 [N], all positive), on `device` or where the lengths are."""
        device, lengths = device or lengths.device, lengths.cpu()
        starts = functional.pad(lengths.cumsum(0), (1, 0))
        counts = (lengths + BLOCK - 1) // BLOCK
        sample = torch.repeat_interleave(counts)
        within = torch.arange(len(sample)) - (counts.cumsum(0) - counts)[sample]
        blocks = torch.stack([starts[sample], starts[sample + 1], starts[sample] + BLOCK * within], 1)
        whole = [to_device(tensor.to(torch.int32), device) for tensor in (starts, blocks)]
        return SampleBounds(whole[0], int(lengths.max()), whole[1])

    @cached_property
    def padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The padded layout: `gather` [N, longest] holds each sample's token positions (the last one repeated as filler),
        `scatter` [T] where token t lies in the flattened layout.
        """
        starts, lengths = self.starts[:-1, None].long(), self.starts.diff()[:, None]
        within = torch.arange(self.longest, device=starts.device)[None, :]
        return starts + torch.minimum(within, lengths - 1), (within < lengths).flatten().nonzero().squeeze(1)


def check_base(config: Any, row_tokens: int) -> None:
    """Raise UserError for a base whose attention or head computes what packed training does not; dropout is only noted."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and window < row_tokens:
        raise UserError(
            f"model.base attends to the last {window} tokens only, but a pack may hold a sample of data.row_tokens="
            f"{row_tokens}: set data.row_tokens={window} or less"
        )
    for key in ("logits_scaling", "logit_scale", "final_logit_softcapping", "attn_logit_softcapping"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UserError(
                f"model.base scales its logits ({key}={getattr(config, key)}), which training here does not know"
            )
    if getattr(config, "attention_dropout", None):
        dropout = config.attention_dropout
        logging.getLogger(__name__).warning("model.base has attention_dropout=%s, which is left out here", dropout)


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
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: SampleBounds, scaling: float | None
) -> torch.Tensor:
    """query [T, H, D], key and value [T, K, D] -> [T, H, D], on any device in any dtype."""
    gather, scatter = bounds.padded
    q, k, v = (tensor[gather].transpose(1, 2) for tensor in (query, key, value))
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).flatten(0, 1)[scatter]


def flash_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: SampleBounds, scaling: float | None
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
        d_out, query, key, value, out, lse, ends, ends, longest, longest, 0.0, True, *state, scale=scaling
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
        return *flash_backward(d_out, query, key, value, out, held, ctx.bounds, ctx.scaling), None, None


AttentionInterface.register(PACKED, packed_attention)
