"""Full fine-tuning, to compare adapters against: every weight trains, and what is saved is a base of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.model.lora import trainable
from pipelines.storage import local_base_dir

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TEXT_PATTERNS = ("tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json")


def unfreeze(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with every weight trainable."""
    return model.requires_grad_(True)


def save_full(
    model: PreTrainedModel, folder: Path, base: str, weights: Mapping[str, torch.Tensor]
) -> None:
    """Write a folder that `model.base` can name: weights in the base's dtype, configuration, tokenizer and template."""
    dtype = model.dtype
    state = {name: tensor.to(dtype) for name, tensor in weights.items()}
    attention = model.config._attn_implementation
    model.config._attn_implementation = "sdpa"
    model.save_pretrained(str(folder), state_dict=state)
    model.config._attn_implementation = attention
    for pattern in _TEXT_PATTERNS:
        for file in local_base_dir(base).glob(pattern):
            shutil.copy(file, folder / file.name)


def audit_full(folder: Path, model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse a saved model whose tensors are not the gathered ones, bit for bit in the base's dtype, and finite."""
    import torch

    saved = _read(folder)
    if saved.keys() - {"lm_head.weight"} != weights.keys() - {"lm_head.weight"}:
        odd = sorted(saved.keys() ^ weights.keys())
        raise ValueError(f"{folder}: {len(odd)} tensors missing or unexpected, first {odd[0]}")
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{folder}: {name} holds a value that is not finite")
        if name in saved and not torch.equal(saved[name], tensor.to(model.dtype)):
            raise ValueError(f"{folder}: {name} differs from the weights gathered from the ranks")


def saved_full(folder: Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of a saved model by the names that `model` trains. Raises ValueError when one misses or does not fit."""
    saved = _read(folder)
    for name, parameter in trainable(model).items():
        shape = getattr(
            parameter, "ds_shape", parameter.shape
        )  # under ZeRO-3 the local shard is empty
        if name not in saved or saved[name].shape != shape:
            found = f"shape {tuple(saved[name].shape)}" if name in saved else "nothing"
            raise ValueError(
                f"{folder}: {name} should have shape {tuple(shape)}, and the file holds {found}"
            )
    return saved


def load_weight(parameter: torch.nn.Parameter, saved: torch.Tensor) -> bool:
    """Put a saved tensor into a live weight; whether that changes a bit of it."""
    import torch

    saved = saved.to(parameter.device, parameter.dtype)
    same = torch.equal(saved, parameter.data)
    parameter.data.copy_(saved)
    return not same


def _read(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(str(file)).items()
    }
