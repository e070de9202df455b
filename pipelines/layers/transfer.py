"""Host memory to a device without waiting for what the device still has to do."""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A CPU tensor's copy on `device`, queued behind the work that is there; a copy from memory that is not pinned would wait."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
