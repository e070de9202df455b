"""Save a trained adapter in PEFT's format, verify its files and read them into the live model."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.adapter_format.keys import ADAPTER_NAME, file_key, parse_key
from pipelines.adapter_format.peft_files import CONFIG_FILE, WEIGHTS_FILE, read_tensors
from pipelines.model.lora import trainable_parameters
from pipelines.model.lora_init import as_plain_lora

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def save_adapter(
    model: PeftModel,
    folder: Path,
    base: str,
    weights: Mapping[str, torch.Tensor] | None = None,
    pissa: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write PEFT's two files, loadable on the untouched base by plain PEFT.

    `weights`, by the names of `trainable_parameters`, replaces the model's own tensors: under ZeRO
    those are shards and the caller gathers them. `pissa` is the part that `init_pissa` took from
    the base.
    """
    from safetensors.torch import save_file

    weights = dict(trainable_parameters(model)) if weights is None else dict(weights)
    config = copy.deepcopy(model.peft_config[ADAPTER_NAME])
    if pissa:
        weights = as_plain_lora(weights, pissa)
        _double_rank(config)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        file_key(name): tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()
    }
    save_file(tensors, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    config.base_model_name_or_path = base
    # PEFT then loads it frozen by default.
    config.inference_mode = True
    config.save_pretrained(str(folder))
    _sort_module_names(folder / CONFIG_FILE)


def _sort_module_names(path: Path) -> None:
    """Sort the lists that PEFT writes from sets: equal adapters are equal bytes in any process."""
    config = json.loads(path.read_text())
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def _double_rank(config: Any) -> None:
    """Double every rank and raise every alpha so that the scale stays the same."""
    factor = math.sqrt(2) if config.use_rslora else 2
    config.r, config.lora_alpha = config.r * 2, config.lora_alpha * factor
    config.rank_pattern = {key: r * 2 for key, r in config.rank_pattern.items()}
    config.alpha_pattern = {key: alpha * factor for key, alpha in config.alpha_pattern.items()}


def verify_saved_adapter(
    folder: Path,
    model: PeftModel,
    pissa: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Verify that a saved adapter can be the result of training `model`.

    Checks the keys and shapes against the model, and that every value is finite. Raises ValueError
    naming the tensor: a checkpoint that fails must never be reported.
    """
    import torch

    saved = read_tensors(folder)
    empty = _empty_parameters(model)
    if pissa:
        empty = as_plain_lora(empty, {name: empty[name] for name in pissa})
    expected = {file_key(name): tensor.shape for name, tensor in empty.items()}
    if saved.keys() != expected.keys():
        differing = sorted(saved.keys() ^ expected.keys())
        raise ValueError(
            f"{folder}: {len(differing)} tensors missing or unexpected, first {differing[0]}"
        )
    for name, tensor in saved.items():
        if tensor.shape != expected[name] or tensor.numel() == 0:
            raise ValueError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, expected "
                f"{tuple(expected[name])}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{folder}: {name} contains a value that is not finite")


def _empty_parameters(model: PeftModel) -> dict[str, torch.Tensor]:
    """The trainable parameters as meta tensors of full shape; under ZeRO-3 a shard is empty."""
    import torch

    return {
        name: torch.empty(getattr(parameter, "ds_shape", parameter.shape), device="meta")
        for name, parameter in trainable_parameters(model).items()
    }


def read_saved_adapter(
    folder: Path, model: PeftModel, pissa: bool = False
) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter, by key, after PEFT itself confirmed that they fit `model`.

    PEFT applies the saved configuration to a base without weights; the keys, shapes and scales that
    this adapter expects must be those of the file and of the live model. With `pissa` the half that
    restores the untouched base is dropped, since the live base is the residual. Raises ValueError.
    """
    import peft
    import torch

    config, base = peft.PeftConfig.from_pretrained(str(folder)), cast(Any, model).get_base_model()
    # On the meta device this takes no memory: only names, shapes and scales are compared.
    with torch.device("meta"):
        reloaded = peft.PeftModel(type(base)(base.config), config, autocast_adapter_dtype=False)
    state = peft.get_peft_model_state_dict(reloaded, save_embedding_layers=False)
    expected = {name: tensor.shape for name, tensor in state.items()}
    tensors = read_tensors(folder)
    saved = {name: tensor.shape for name, tensor in tensors.items()}
    differing = sorted(
        name for name in expected.keys() | saved.keys() if expected.get(name) != saved.get(name)
    )
    if differing:
        raise ValueError(
            f"{folder}: PEFT reads {len(differing)} tensors differently from how they were "
            f"written, "
            f"first {differing[0]}"
        )
    live = dict(model.named_modules())
    for name, layer in reloaded.named_modules():
        scale = layer.scaling[ADAPTER_NAME] if hasattr(layer, "lora_A") else 0.0
        if scale and not math.isclose(scale, live[name].scaling[ADAPTER_NAME], rel_tol=1e-12):
            raise ValueError(
                f"{folder}: {name} reloads with scale {scale}, trained with "
                f"{live[name].scaling[ADAPTER_NAME]}"
            )
    return {name: _first_half(name, t) for name, t in tensors.items()} if pissa else tensors


def _first_half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The trained half of a matrix that `as_plain_lora` doubled; other tensors as they are."""
    key = parse_key(name)
    return tensor if key is None else tensor.chunk(2, 0 if key.side == "A" else 1)[0]


def load_into_adapter(model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Copy tensors, by their keys in the file, into the live adapter.

    Returns the names of parameters that this changes or that get no tensor, and keys without a
    parameter: none if the file equals the live adapter.
    """
    import peft
    import torch

    before = {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in trainable_parameters(model).items()
    }
    result = peft.set_peft_model_state_dict(model, dict(tensors), adapter_name=ADAPTER_NAME)
    unmatched = [*result.unexpected_keys, *(name for name in result.missing_keys if name in before)]
    return unmatched + [
        name
        for name, parameter in trainable_parameters(model).items()
        if not torch.equal(parameter.detach().cpu(), before[name])
    ]
