"""Collectives for control flow: errors and decisions that every rank must see."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pipelines.core.errors import UserError


@contextmanager
def raise_on_all_ranks(device: torch.device) -> Iterator[None]:
    """If the body raises UserError on any rank, every rank raises it, so none waits for a dead one.

    Collective: every rank enters it. The body itself must contain no collective, because a rank
    that raises leaves it early. The text is that of the lowest rank that raised. Any other error is
    not shared; it ends its worker, and Ray Train then ends the others.
    """
    own_error = None
    try:
        yield
    except UserError as error:
        own_error = error
    num_failed = torch.tensor(float(own_error is not None), device=device)
    dist.all_reduce(num_failed)
    # The texts cost a pickled all-gather, so they are only exchanged after a failure.
    if num_failed.item():
        texts: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(texts, str(own_error) if own_error else None)
        raise UserError(next(text for text in texts if text)) from own_error


def broadcast_int(number: int, device: torch.device) -> int:
    """The number that rank 0 passed. Collective."""
    tensor = torch.tensor(number, device=device)
    dist.broadcast(tensor, 0)
    return int(tensor.item())


def all_reduce_min(number: int | None, device: torch.device) -> int | None:
    """The smallest number that any rank passed; None (unknown) counts as infinite. Collective.

    Computed in float64, which is exact for integers up to 2^53.
    """
    tensor = torch.tensor(
        math.inf if number is None else number, dtype=torch.float64, device=device
    )
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return None if math.isinf(tensor.item()) else int(tensor.item())
