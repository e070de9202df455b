"""Checks that training has moved every tensor of an adapter."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.adapter_format.keys import ADAPTER_NAME, KEY_PREFIX, file_key
from pipelines.core.errors import UserError
from pipelines.train.engine.protocol import OptimizerState

_A_UPDATES = 10
"""A's gradient is zero while B is. In fp16 B rounds to zero for some more updates of a warm-up."""


def check_moved(step: int, state: OptimizerState) -> None:
    """Raise UserError naming the adapter tensors that had no gradient, or whose B is still zero.

    Adam's first moment tells whether a tensor ever had a gradient; its value does not, since weight
    decay moves A without one. Adapters of single experts are not checked, because a router may have
    sent them no token yet.
    """
    names = [name for name in state.weights if not _is_of_expert(name)]
    unmoved = [name for name in names if not _has_moved(name, state)] if state.step else []
    if not unmoved:
        return
    moved_modules = _module_names(set(names) - set(unmoved))
    dead_modules = _module_names(unmoved)
    targets = [name for name in moved_modules if name not in dead_modules]
    advice = f"set lora.targets=[{', '.join(targets)}]" if targets else "set other lora.targets"
    raise UserError(
        f"step {step}: {len(unmoved)} of the adapter's {len(names)} tensors have not moved in "
        f"{state.step} updates, first {file_key(unmoved[0]).removeprefix(KEY_PREFIX)}: the base "
        f"computes without these modules ({', '.join(dead_modules)}): {advice}"
    )


def _has_moved(name: str, state: OptimizerState) -> bool:
    if f".lora_A.{ADAPTER_NAME}." in name and state.step < _A_UPDATES:
        return True
    had_gradient = bool(state.exp_avg[name].any())
    return had_gradient and (".lora_B." not in name or bool(state.weights[name].any()))


def _is_of_expert(name: str) -> bool:
    return "experts" in name.split(".")


def _module_names(names: Iterable[str]) -> list[str]:
    """The last parts of the modules' names of parameters, such as q_proj, sorted."""
    modules = (name.split(".lora_")[0].split(".modules_to_save")[0] for name in names)
    return sorted({module.rsplit(".", 1)[-1] for module in modules})
