"""Adam's moments inside DeepSpeed: created before the first step, readable as fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from pipelines.train.optimizer.bnb_adam import read_moments, write_moments

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamState:
    """The state of the optimizer that DeepSpeed wraps.

    `wrapped` is `engine.optimizer`. Without ZeRO it is the torch optimizer itself, with ZeRO an
    object that holds it as `.optimizer` and has replaced its parameters by flat fp32 partitions.
    `is_bnb` says that bitsandbytes made the optimizer, whose moments have names and formats of its
    own.
    """

    def __init__(self, wrapped: Any, is_bnb: bool) -> None:
        self._wrapped, self._is_bnb = wrapped, is_bnb
        self._adam: torch.optim.Optimizer = getattr(wrapped, "optimizer", wrapped)

    @property
    def num_updates(self) -> int:
        """The number of updates that Adam has made; its bias correction depends on it."""
        return max((int(state["step"]) for state in self._adam.state.values()), default=0)

    def moment(self, parameter: torch.nn.Parameter, name: str) -> torch.Tensor:
        """A moment of a parameter that is not partitioned (no ZeRO)."""
        return self._adam.state[parameter][name]

    def reset(self, num_updates: int) -> None:
        """Create the moments, or empty existing ones: all zero, counted to `num_updates`."""
        # Torch creates the state in Adam's first step, and DeepSpeed links it to its parameters
        # there (`_lazy_init_hp_params_optimizer_state`): too late for
        # `safe_set_full_optimizer_state`, which a resume calls before any step. Where there are two
        # parameter groups (LoRA+), DeepSpeed steps them one after the other, and that link would
        # miss the second one's state. ZeRO-3 keeps the flat partitions out of the parameter groups.
        partitions = getattr(self._wrapped, "fp32_partitioned_groups_flat", None)
        for g, group in enumerate(self._adam.param_groups):
            if partitions is None:
                flats = group["params"]
            else:
                flats = partitions if g == 0 else ()
            for p, flat in enumerate(flats):
                state = self._adam.state[flat]
                if self._is_bnb:
                    state.clear()
                    cast(Any, self._adam).init_state(group, flat, g, p)
                    state["step"] = num_updates
                    continue
                # Fused Adam wants the counter on the GPU, the others on the CPU.
                device = flat.device if flat.is_cuda else None
                state["step"] = torch.tensor(float(num_updates), device=device)
                for name in MOMENTS:
                    state[name] = torch.zeros_like(flat, memory_format=torch.preserve_format)
        self._link()

    @contextmanager
    def as_fp32(self, write: bool) -> Iterator[None]:
        """Inside, bitsandbytes' moments also exist in fp32 under torch's names.

        DeepSpeed's `safe_get_full_optimizer_state` and `safe_set_full_optimizer_state` know only
        those names. With `write`, changed moments are quantized back at the end.
        """
        if not self._is_bnb:
            yield
            return
        states = list(self._adam.state.values())
        for state in states:
            state |= read_moments(state)
        self._link()
        yield
        for state in states:
            moments = {name: state.pop(name) for name in MOMENTS}
            if write:
                write_moments(state, moments)
        self._link()

    def _link(self) -> None:
        """Have DeepSpeed link its parameters to the current moments.

        DeepSpeed does so once, and would afterwards read and write the moments of that time.
        """
        if hasattr(self._wrapped, "_lazy_init_hp_params_optimizer_state"):
            self._wrapped._hp_optimizer_states_linked = False
            self._wrapped._lazy_init_hp_params_optimizer_state()
