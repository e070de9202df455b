"""Copies from host memory to a device that do not wait for the device's queue."""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A CPU tensor's copy on `device`, queued after the work that is already there.

    The memory is pinned first: a copy from pageable memory blocks the host until the queue is
    empty.
    """
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
