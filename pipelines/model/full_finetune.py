"""Full fine-tuning, a reference for adapters: every weight trains, and a complete base is saved."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.model.lora import trainable_parameters
from pipelines.storage import local_base_dir

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TEXT_PATTERNS = (
    "tokenizer*",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)


def unfreeze(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with every weight trainable."""
    return model.requires_grad_(True)


def save_full(
    model: PreTrainedModel, folder: Path, base: str, weights: Mapping[str, torch.Tensor]
) -> None:
    """Write a folder that `model.base` can name.

    It contains `weights` (by parameter name) in the base's dtype, the configuration, the tokenizer
    and the chat template.
    """
    dtype = model.dtype
    state = {name: tensor.to(dtype) for name, tensor in weights.items()}
    # The folder must load without this package, so it must not name our attention function.
    attention = model.config._attn_implementation
    model.config._attn_implementation = "sdpa"
    model.save_pretrained(str(folder), state_dict=state)
    model.config._attn_implementation = attention
    for pattern in _TEXT_PATTERNS:
        for file in local_base_dir(base).glob(pattern):
            target = folder / file.relative_to(local_base_dir(base))
            target.parent.mkdir(exist_ok=True)
            shutil.copy(file, target)


def verify_saved_full(
    folder: Path, model: PreTrainedModel, weights: Mapping[str, torch.Tensor]
) -> None:
    """Verify that the saved tensors equal `weights` bit for bit in the base's dtype and are finite.

    A tied head has no tensor of its own in the file. Raises ValueError naming the tensor.
    """
    import torch

    saved = _read(folder)
    if saved.keys() - {"lm_head.weight"} != weights.keys() - {"lm_head.weight"}:
        differing = sorted(saved.keys() ^ weights.keys())
        raise ValueError(
            f"{folder}: {len(differing)} tensors missing or unexpected, first {differing[0]}"
        )
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{folder}: {name} contains a value that is not finite")
        if name in saved and not torch.equal(saved[name], tensor.to(model.dtype)):
            raise ValueError(f"{folder}: {name} differs from the weights gathered from the ranks")


def read_saved_full(folder: Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of a saved model, by parameter name.

    Raises ValueError when a tensor that `model` trains is missing or has another shape.
    """
    saved = _read(folder)
    for name, parameter in trainable_parameters(model).items():
        # Under ZeRO-3 the local shard is empty.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if name not in saved or saved[name].shape != shape:
            actual = f"has shape {tuple(saved[name].shape)}" if name in saved else "is missing"
            raise ValueError(f"{folder}: {name} {actual}, expected shape {tuple(shape)}")
    return saved


def load_into_weight(parameter: torch.nn.Parameter, saved: torch.Tensor) -> bool:
    """Copy a saved tensor into a live weight; returns whether that changes any bit."""
    import torch

    saved = saved.to(parameter.device, parameter.dtype)
    changed = not torch.equal(saved, parameter.data)
    parameter.data.copy_(saved)
    return changed


def _read(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(str(file)).items()
    }
