"""PEFT's names of an adapter's tensors, in a live model and in `adapter_model.safetensors`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

ADAPTER_NAME = "default"
"""PEFT's name for the adapter that trains: part of a live parameter's name, not of the file's."""

KEY_PREFIX = "base_model.model."
"""PEFT's wrapper around the base: precedes the base's own module names in every key."""


class LoraKey(NamedTuple):
    """One matrix of an adapter: the base's module, such as model.layers.0.mlp.up_proj, and side "A"
    or "B".
    """

    module: str
    side: str


def parse_key(key: str) -> LoraKey | None:
    """The module and side of a key in the file; None for any other tensor, as a DoRA magnitude."""
    for side in "AB":
        suffix = f".lora_{side}.weight"
        if key.endswith(suffix):
            return LoraKey(key.removeprefix(KEY_PREFIX).removesuffix(suffix), side)
    return None


def file_key(parameter: str) -> str:
    """The key in the file of a live model's trainable parameter."""
    key = parameter.replace(f".modules_to_save.{ADAPTER_NAME}.", ".")
    key = key.replace(f".{ADAPTER_NAME}.weight", ".weight")
    return key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def pair_keys(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The keys of A and of B by module.

    Raises ValueError for a key that is neither or that has no partner.
    """
    sides: dict[str, dict[str, str]] = {}
    for key in keys:
        parsed = parse_key(key)
        if parsed is None:
            raise ValueError(f"{key} is neither a lora_A nor a lora_B weight")
        sides.setdefault(parsed.module, {})[parsed.side] = key
    pairs = {}
    for module, by_side in sides.items():
        if len(by_side) < 2:
            ((side, key),) = by_side.items()
            raise ValueError(f"{key} has no partner lora_{'B' if side == 'A' else 'A'}")
        pairs[module] = (by_side["A"], by_side["B"])
    return pairs
