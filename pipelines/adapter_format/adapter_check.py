"""Checks of an adapter folder before it becomes a model version.

PEFT itself loads adapters with NaN in them, with a scale of a million or with every B at zero
without a word, so the registry checks first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.adapter_format.keys import pair_keys
from pipelines.adapter_format.limits import REGISTRY_MAX_RANK, REGISTRY_MAX_SCALE
from pipelines.adapter_format.peft_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterConfig,
    format_errors_as_user_errors,
    read_arrays,
    read_config,
)
from pipelines.core.errors import UserError

_IGNORED = {"README.md"}  # PEFT writes a model card; the registry does not copy it


def check_adapter(folder: Path) -> None:
    """Refuse an adapter folder that is unsafe, damaged or cannot be the result of training.

    The folder may contain only `adapter_config.json` and `adapter_model.safetensors` (and PEFT's
    README.md), as plain files. The adapter must be plain LoRA within the limits of the registry;
    every tensor must be half of an A [r, in], B [out, r] pair and finite; at least one B must not
    be zero. Raises UserError with the name of the file or tensor.
    """
    _check_file_names(folder)
    with format_errors_as_user_errors():
        config = read_config(folder)
        _check_limits(folder / CONFIG_FILE, config)
        arrays = read_arrays(folder)
    _check_arrays(folder / WEIGHTS_FILE, config.r, arrays)


def _check_file_names(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in names:
            raise UserError(f"{folder}: no {name}, so it is not an adapter in PEFT's format")
    foreign = [name for name in names if name not in {CONFIG_FILE, WEIGHTS_FILE, *_IGNORED}]
    # A link could point outside the folder, or to another file after this check.
    links = [
        name for name in names if (folder / name).is_symlink() or not (folder / name).is_file()
    ]
    for name in foreign + links:
        raise UserError(
            f"{folder / name}: only {CONFIG_FILE} and {WEIGHTS_FILE}, as plain files, may be "
            f"registered"
        )


def _check_limits(path: Path, config: AdapterConfig) -> None:
    for key in config.beyond_plain_lora:
        raise UserError(f"{path}: {key} is set, which the serving engines would drop silently")
    if config.r > REGISTRY_MAX_RANK:
        raise UserError(f"{path}: r={config.r} is above {REGISTRY_MAX_RANK}")
    if config.scale > REGISTRY_MAX_SCALE:
        raise UserError(
            f"{path}: lora_alpha={config.alpha:g} at r={config.r} scales the adapter by "
            f"{config.scale:g}, "
            f"above {REGISTRY_MAX_SCALE:g}"
        )


def _check_arrays(path: Path, r: int, arrays: dict[str, np.ndarray]) -> None:
    if not arrays:
        raise UserError(f"{path}: contains no tensor")
    try:
        pairs = pair_keys(arrays)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    for keys in pairs.values():
        for key, rank_axis in zip(keys, (0, 1), strict=True):
            shape = arrays[key].shape
            if len(shape) != 2 or 0 in shape or shape[rank_axis] != r:
                raise UserError(f"{path}: {key} has shape {list(shape)}, which does not fit r={r}")
            if not np.isfinite(arrays[key]).all():
                raise UserError(f"{path}: {key} contains a value that is not finite")
    if not any(arrays[key_b].any() for _, key_b in pairs.values()):
        raise UserError(f"{path}: every lora_B is zero, so the adapter does nothing")
