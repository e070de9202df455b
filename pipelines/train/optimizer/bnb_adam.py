"""AdamW of bitsandbytes: moments in 8 bits or paged to the CPU, read and written as plain fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_CLASSES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW32bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
}
_NUMBERS = {"exp_avg": "1", "exp_avg_sq": "2"}
"""bitsandbytes numbers the moments: "state1" averages the gradient, "state2" its square."""
_BLOCK = 256  # values that share one scale; fixed in bitsandbytes' 8-bit optimizers


def bnb_adamw(name: str) -> Any:
    """The optimizer class of a recipe's `train.optimizer`."""
    import bitsandbytes.optim

    return getattr(bitsandbytes.optim, _CLASSES[name])


def read_moments(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The moments in one parameter's state, fp32, by torch's names "exp_avg" and "exp_avg_sq".

    bitsandbytes keeps parameters of fewer than 4,096 values in fp32 also in its 8-bit optimizers:
    such a state has no scales ("absmax1", "absmax2").
    """
    import bitsandbytes.functional as bnb

    moments = {}
    for name, number in _NUMBERS.items():
        values = state[f"state{number}"]
        if f"absmax{number}" not in state:
            moments[name] = values.clone()
            continue
        moments[name] = bnb.dequantize_blockwise(
            values,
            absmax=state[f"absmax{number}"],
            code=state[f"qmap{number}"],
            blocksize=_BLOCK,
        )
    return moments


def write_moments(state: dict[str, Any], moments: dict[str, torch.Tensor]) -> None:
    """Put fp32 moments into one parameter's state; 8-bit states round them."""
    import bitsandbytes.functional as bnb

    for name, number in _NUMBERS.items():
        if f"absmax{number}" not in state:
            state[f"state{number}"].copy_(moments[name])
            continue
        values, scales = bnb.quantize_blockwise(
            moments[name], code=state[f"qmap{number}"], blocksize=_BLOCK
        )
        state[f"state{number}"].copy_(values)
        state[f"absmax{number}"].copy_(scales.absmax)
