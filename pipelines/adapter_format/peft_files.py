"""The reader of PEFT's two files. It runs nothing that they contain."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from pipelines.adapter_format.scale import lora_scale
from pipelines.core.errors import UserError, one_line

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_BEYOND_PLAIN_LORA = ("modules_to_save", "use_dora", "rank_pattern", "alpha_pattern")
_NUMPY_TYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


class AdapterFormatError(ValueError):
    """A file of an adapter is missing, damaged or not in PEFT's LoRA format. Names the file."""


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of `adapter_config.json` that decide what a LoRA adapter computes.

    `rank_pattern` and `alpha_pattern` map regular expressions over module names to values that
    replace `r` and `alpha`.
    """

    r: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    beyond_plain_lora: tuple[str, ...]
    """The keys that are set and that plain LoRA does not have, in the order of the format."""

    @property
    def scale(self) -> float:
        """The scale of modules that no pattern matches."""
        return lora_scale(self.alpha, self.r, self.rslora)

    def rank_of(self, module: str) -> int:
        """The rank of one module's A and B."""
        return self.rank_pattern.get(_matching_pattern(self.rank_pattern, module), self.r)

    def scale_of(self, module: str) -> float:
        """The scale of one module."""
        alpha = self.alpha_pattern.get(_matching_pattern(self.alpha_pattern, module), self.alpha)
        return lora_scale(alpha, self.rank_of(module), self.rslora)


def read_config(folder: Path) -> AdapterConfig:
    """Read an adapter's configuration.

    Raises AdapterFormatError when it is missing or not LoRA, or when a rank or alpha is not a
    positive number.
    """
    path = folder / CONFIG_FILE
    try:
        fields = json.loads(path.read_text())
        kind, r, alpha = fields["peft_type"], fields["r"], fields["lora_alpha"]
        rank_pattern = dict(fields.get("rank_pattern") or {})
        alpha_pattern = dict(fields.get("alpha_pattern") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterFormatError(f"{path}: not a LoRA configuration ({error!r})") from error
    if kind != "LORA":
        raise AdapterFormatError(f"{path}: peft_type is {kind!r}, only LORA is supported")
    for name, rank in {"r": r, **rank_pattern}.items():
        if type(rank) is not int or rank < 1:
            raise AdapterFormatError(f"{path}: {name}={rank!r} is not an integer of at least 1")
    for name, value in {"lora_alpha": alpha, **alpha_pattern}.items():
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise AdapterFormatError(f"{path}: {name}={value!r} is not a positive number")
    beyond = tuple(key for key in _BEYOND_PLAIN_LORA if fields.get(key))
    rslora = bool(fields.get("use_rslora"))
    return AdapterConfig(r, alpha, rslora, rank_pattern, alpha_pattern, beyond)


def read_tensors(folder: Path) -> dict[str, Any]:
    """The tensors of `adapter_model.safetensors` by key, as torch tensors on the CPU.

    This imports torch. Raises AdapterFormatError when the file is missing or damaged.
    """
    with (
        _weights_errors(folder) as path,
        safetensors.safe_open(str(path), framework="pt") as file,
    ):
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of `adapter_model.safetensors` by key, as numpy arrays, without torch.

    bfloat16 becomes float32. Raises AdapterFormatError when the file is missing or damaged, or a
    tensor is not of a floating-point dtype.
    """
    with _weights_errors(folder) as path:
        tensors = safetensors.deserialize(path.read_bytes())
    return {key: _as_array(tensor, f"{path}: {key}") for key, tensor in tensors}


@contextmanager
def format_errors_as_user_errors() -> Iterator[None]:
    """Turn AdapterFormatError into UserError, where the folder is one that the user named."""
    try:
        yield
    except AdapterFormatError as error:
        raise UserError(str(error)) from error


def _matching_pattern(pattern: Mapping[str, Any], module: str) -> str:
    """The first key of a pattern that matches the end of a module's name, as PEFT matches; "" if
    none does.
    """
    return next((key for key in pattern if re.match(rf"(.*\.)?({key})$", module)), "")


@contextmanager
def _weights_errors(folder: Path) -> Iterator[Path]:
    path = folder / WEIGHTS_FILE
    try:
        yield path
    except (OSError, safetensors.SafetensorError) as error:
        reason = one_line(error)
        raise AdapterFormatError(f"{path}: not a complete safetensors file ({reason})") from error


def _as_array(tensor: Mapping[str, Any], name: str) -> np.ndarray:
    if tensor["dtype"] == "BF16":
        # numpy has no bfloat16; its bits are the upper half of a float32's.
        bits = np.frombuffer(tensor["data"], dtype=np.uint16).astype(np.uint32)
        return (bits << 16).view(np.float32).reshape(tensor["shape"])
    if tensor["dtype"] not in _NUMPY_TYPES:
        raise AdapterFormatError(
            f"{name} has dtype {tensor['dtype']}, expected F32, BF16, F16 or F64"
        )
    return np.frombuffer(tensor["data"], dtype=_NUMPY_TYPES[tensor["dtype"]]).reshape(
        tensor["shape"]
    )
