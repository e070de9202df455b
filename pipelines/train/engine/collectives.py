"""What all ranks must see alike: where they go on from, and a mistake of one of them, for which none shall wait."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pipelines.core.errors import UserError


@contextmanager
def raise_on_all_ranks(device: torch.device) -> Iterator[None]:
    """Do what may fail on some ranks only. Collective: every rank enters it, and its body holds no collective.

    Raises UserError on all ranks, with the text of the first rank that met one, when any did.
    """
    mistake = None
    try:
        yield
    except UserError as error:
        mistake = error
    failed = torch.tensor(float(mistake is not None), device=device)
    dist.all_reduce(failed)
    if failed.item():
        said: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(said, str(mistake) if mistake else None)
        raise UserError(next(text for text in said if text)) from mistake


def broadcast_int(number: int, device: torch.device) -> int:
    """What rank 0 passed. Collective."""
    tensor = torch.tensor(number, device=device)
    dist.broadcast(tensor, 0)
    return int(tensor.item())


def all_reduce_min(number: int | None, device: torch.device) -> int | None:
    """The least that any rank passed, None (unknown) being more than any number. Collective."""
    tensor = torch.tensor(
        math.inf if number is None else number, dtype=torch.float64, device=device
    )
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return None if math.isinf(tensor.item()) else int(tensor.item())
