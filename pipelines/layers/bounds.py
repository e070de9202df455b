"""The bounds of samples in a packed micro-batch, in the forms that attention needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional

from pipelines.layers.transfer import to_device

BLOCK = 64  # tokens per program of `short_attention`


@dataclass(frozen=True)
class SampleBounds:
    """Bounds of the N samples of a micro-batch of T tokens.

    `cu_seqlens` [N + 1] int32 has the cumulative lengths, from 0 to T, and `max_seqlen` the
    longest. `blocks` [., 3] int32 lists all blocks of at most BLOCK tokens: a sample's start and
    end and the block's first token.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    blocks: torch.Tensor

    @staticmethod
    def of(lengths: torch.Tensor, device: torch.device | str | None = None) -> SampleBounds:
        """Bounds of samples with these lengths (int64 [N], all positive).

        On `device`, by default that of `lengths`.
        """
        device, lengths = device or lengths.device, lengths.cpu()
        starts = functional.pad(lengths.cumsum(0), (1, 0))
        counts = (lengths + BLOCK - 1) // BLOCK
        # Sample index of every block, then the block's number within its sample.
        sample = torch.repeat_interleave(counts)
        within = torch.arange(len(sample)) - (counts.cumsum(0) - counts)[sample]
        blocks = torch.stack(
            [starts[sample], starts[sample + 1], starts[sample] + BLOCK * within], 1
        )
        cu_seqlens, blocks = (to_device(t.to(torch.int32), device) for t in (starts, blocks))
        return SampleBounds(cu_seqlens, int(lengths.max()), blocks)

    @cached_property
    def padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices between the packed and a padded layout.

        `gather` [N, max_seqlen] has each sample's token positions, its last one repeated as
        padding; `scatter` [T] has the position of token t in the flattened padded layout.
        """
        starts, lengths = self.cu_seqlens[:-1, None].long(), self.cu_seqlens.diff()[:, None]
        within = torch.arange(self.max_seqlen, device=starts.device)[None, :]
        gather = starts + torch.minimum(within, lengths - 1)
        return gather, (within < lengths).flatten().nonzero().squeeze(1)
