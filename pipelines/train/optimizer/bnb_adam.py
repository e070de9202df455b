"""AdamW of bitsandbytes: moments in 8 bits or paged to the CPU, and how to read and write them as plain fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_CLASSES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW32bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
}
_NAMES = {"exp_avg": "1", "exp_avg_sq": "2"}
_BLOCK = 256


def quantized_adamw(name: str) -> Any:
    """The optimizer class of a recipe's `train.optimizer`."""
    import bitsandbytes.optim

    return getattr(bitsandbytes.optim, _CLASSES[name])


def read_moments(held: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Adam's moments in one parameter's state, as fp32; small parameters are held in fp32 anyhow."""
    import bitsandbytes.functional as bnb

    found = {}
    for name, n in _NAMES.items():
        state = held[f"state{n}"]
        coded = f"absmax{n}" in held
        options = {
            "absmax": held.get(f"absmax{n}"),
            "code": held.get(f"qmap{n}"),
            "blocksize": _BLOCK,
        }
        found[name] = bnb.dequantize_blockwise(state, **options) if coded else state.clone()
    return found


def write_moments(held: dict[str, Any], moments: dict[str, torch.Tensor]) -> None:
    """The inverse of `read_moments`, up to the rounding to 8 bits."""
    import bitsandbytes.functional as bnb

    for name, n in _NAMES.items():
        if f"absmax{n}" not in held:
            held[f"state{n}"].copy_(moments[name])
            continue
        coded, scales = bnb.quantize_blockwise(
            moments[name], code=held[f"qmap{n}"], blocksize=_BLOCK
        )
        held[f"state{n}"].copy_(coded)
        held[f"absmax{n}"].copy_(scales.absmax)
