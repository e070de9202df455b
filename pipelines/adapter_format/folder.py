"""What an adapter folder may hold before it becomes a model version. Reads headers and numbers; runs nothing in it.

PEFT itself loads adapters with NaN in them, with a scale of a million or with every B at zero without a word, so the
registry looks first.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from pipelines.core.errors import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_ALSO_ALLOWED = {"README.md"}  # PEFT writes a model card; it is left behind
_MAX_SCALE = 256.0
_NUMPY_TYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


def check_adapter(folder: Path) -> None:
    """Refuse an adapter folder that is unsafe, damaged or cannot be what training made.

    Only `adapter_config.json` and `adapter_model.safetensors` (and PEFT's README.md) may lie in it, as plain files; it
    must be plain LoRA with sane r and alpha; every tensor must be one half of an A [r, in], B [out, r] pair of that r,
    finite, and some B must not be zero. Raises UserError naming the file or tensor.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in names:
            raise UserError(f"{folder}: no {name}, so it is not an adapter in PEFT's format")
    odd = sorted(names - {CONFIG_FILE, WEIGHTS_FILE} - _ALSO_ALLOWED)
    odd += [
        name
        for name in sorted(names)
        if (folder / name).is_symlink() or not (folder / name).is_file()
    ]
    if odd:
        raise UserError(
            f"{folder / odd[0]}: only {CONFIG_FILE} and {WEIGHTS_FILE}, as plain files, may be registered"
        )
    config = _read_config(folder / CONFIG_FILE)
    _check_tensors(folder / WEIGHTS_FILE, config)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
        kind, r, alpha = config["peft_type"], config["r"], config["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a LoRA configuration ({error!r})") from error
    if kind != "LORA":
        raise UserError(f"{path}: peft_type {kind!r} cannot be registered, only LORA")
    for extra in ("modules_to_save", "use_dora", "rank_pattern", "alpha_pattern"):
        if config.get(extra):
            raise UserError(
                f"{path}: {extra} is set, which the serving engines would drop silently"
            )
    if type(r) is not int or not 1 <= r <= 1024:
        raise UserError(f"{path}: r={r!r} is not a whole number from 1 to 1024")
    if type(alpha) not in (int, float) or not math.isfinite(alpha) or alpha <= 0:
        raise UserError(f"{path}: lora_alpha={alpha!r} is not a positive number")
    scale = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    if scale > _MAX_SCALE:
        raise UserError(
            f"{path}: lora_alpha={alpha} at r={r} scales the adapter by {scale:g}, above {_MAX_SCALE:g}"
        )
    return config


def _check_tensors(path: Path, config: dict[str, Any]) -> None:
    try:
        tensors = dict(safetensors.deserialize(path.read_bytes()))
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
    if not tensors:
        raise UserError(f"{path}: holds no tensor")
    any_b = False
    for name, tensor in tensors.items():
        side = (
            "lora_A"
            if name.endswith(".lora_A.weight")
            else "lora_B"
            if name.endswith(".lora_B.weight")
            else ""
        )
        if not side:
            raise UserError(f"{path}: {name} is neither a lora_A nor a lora_B weight")
        other = name.replace(side, "lora_B" if side == "lora_A" else "lora_A")
        if other not in tensors:
            raise UserError(f"{path}: {name} has no partner {other}")
        shape = tensor["shape"]
        if len(shape) != 2 or 0 in shape or shape[0 if side == "lora_A" else 1] != config["r"]:
            raise UserError(f"{path}: {name} has shape {shape}, which does not fit r={config['r']}")
        values = _as_float(tensor, f"{path}: {name}")
        if not np.isfinite(values).all():
            raise UserError(f"{path}: {name} holds a value that is not finite")
        any_b = any_b or (side == "lora_B" and bool(values.any()))
    if not any_b:
        raise UserError(f"{path}: every lora_B is zero, so the adapter does nothing")


def _as_float(tensor: dict[str, Any], what: str) -> np.ndarray:
    """The tensor's values; numpy has no bfloat16, whose bits are the upper half of a float32's."""
    if tensor["dtype"] == "BF16":
        bits = np.frombuffer(tensor["data"], dtype=np.uint16).astype(np.uint32)
        return (bits << 16).view(np.float32)
    if tensor["dtype"] not in _NUMPY_TYPES:
        raise UserError(f"{what} has dtype {tensor['dtype']}, expected F32, BF16, F16 or F64")
    return np.frombuffer(tensor["data"], dtype=_NUMPY_TYPES[tensor["dtype"]])
