"""Sample bounds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional

from pipelines.layers.transfer import to_device

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
        blocks = torch.stack(
            [starts[sample], starts[sample + 1], starts[sample] + BLOCK * within], 1
        )
        whole = [to_device(tensor.to(torch.int32), device) for tensor in (starts, blocks)]
        return SampleBounds(whole[0], int(lengths.max()), whole[1])

    @cached_property
    def padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The padded layout: `gather` [N, longest] holds each sample's token positions (the last one repeated as filler),
        `scatter` [T] where token t lies in the flattened layout.
        """
        starts, lengths = self.starts[:-1, None].long(), self.starts.diff()[:, None]
        within = torch.arange(self.longest, device=starts.device)[None, :]
        return starts + torch.minimum(within, lengths - 1), (
            within < lengths
        ).flatten().nonzero().squeeze(1)
