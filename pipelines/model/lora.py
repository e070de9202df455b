"""The adapter: attached to a frozen base, saved in PEFT's folder format, loaded back and chosen.

LoRA (Hu et al. 2021, arXiv:2106.09685): h = W0 x + scale * B A x with A [r, in], B [out, r], scale = alpha / r, or
alpha / sqrt(r) when rank-stabilised (Kalajdzievski 2023, arXiv:2312.03732). B starts at zero, so step 0 is the base.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.adapter_format.folder import WEIGHTS_FILE
from pipelines.config.schema import TARGET_PRESETS, LoraConfig
from pipelines.core.errors import UserError
from pipelines.model.lora_init import as_plain_lora

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

_ADAPTER = "default"


def attach(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """Put a fresh trainable adapter on a frozen base; A is drawn from `seed`, B is zero, both fp32.

    Raises UserError for a name of `lora.targets`, `modules_to_save` or a pattern that means no module of the model, of
    which PEFT says nothing as long as another one does, and for a rank that a layer cannot have.
    """
    import peft
    import torch

    targets = (
        TARGET_PRESETS.get(config.targets, config.targets)
        if isinstance(config.targets, str)
        else config.targets
    )
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=cast(int, config.alpha),
        lora_dropout=config.dropout,
        target_modules=targets,
        use_rslora=config.rslora,
        use_dora=config.dora,
        rank_pattern=config.rank_pattern,
        alpha_pattern=cast(Any, config.alpha_pattern),
        modules_to_save=config.modules_to_save or None,
        task_type="CAUSAL_LM",
    )
    _check_names(model, config, targets)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise UserError(
            f"lora.targets={config.targets!r} cannot be adapted: {' '.join(str(error).split())}; {_linears(model)}"
        ) from error
    _check_layers(adapted, config)
    for parameter in trainable(adapted).values():
        parameter.data = parameter.data.float()
    return cast("PeftModel", adapted)


def _check_names(model: PreTrainedModel, config: LoraConfig, targets: str | list[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    given = {
        "targets": [] if isinstance(targets, str) else targets,
        "modules_to_save": config.modules_to_save,
    }
    for key, wanted in given.items():
        for name in wanted:
            if not any(f".{known}".endswith(f".{name}") for known in names):
                near = difflib.get_close_matches(
                    name, {known.rsplit(".", 1)[-1] for known in names}, n=1
                )
                hint = f"; did you mean {near[0]}?" if near else f"; {_linears(model)}"
                raise UserError(
                    f"lora.{key}={getattr(config, key)!r}: the base has no module {name!r}{hint}"
                )
    for key, pattern in (
        ("rank_pattern", config.rank_pattern),
        ("alpha_pattern", config.alpha_pattern),
    ):
        for name, value in pattern.items():
            try:
                re.compile(name)
            except re.error as error:
                raise UserError(
                    f"lora.{key}: {name!r} is no regular expression ({error})"
                ) from error
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"lora.{key}: {name}: {value} given, must be greater than 0")


def _linears(model: PreTrainedModel) -> str:
    import torch

    known = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, m in model.named_modules()
            if isinstance(m, torch.nn.Linear)
        }
    )
    return f"its linear modules are {', '.join(known)}"


def _check_layers(model: PeftModel, config: LoraConfig) -> None:
    layers: dict[str, Any] = {
        n: m for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")
    }
    for key, pattern in (
        ("rank_pattern", config.rank_pattern),
        ("alpha_pattern", config.alpha_pattern),
    ):
        for name in pattern:
            if not any(re.match(rf"(.*\.)?({name})$", layer) for layer in layers):
                known = sorted({layer.rsplit(".", 1)[-1] for layer in layers})
                raise UserError(
                    f"lora.{key}: {name!r} means none of the adapted modules, which are {', '.join(known)}"
                )
    for name, layer in layers.items() if config.init != "zero" else ():
        most = (
            layer.in_features
            if config.init == "eva"
            else min(layer.in_features, layer.out_features)
        )
        if layer.r[_ADAPTER] > most:
            raise UserError(
                f"lora.init={config.init} finds at most {most} directions in {name}, but its rank is {layer.r[_ADAPTER]}: "
                f"set lora.r={most} or lower, or lora.init=zero"
            )


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name, in the model's own order."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def saved_name(parameter: str) -> str:
    """The name in an adapter file of a trainable parameter, by PEFT's convention."""
    name = parameter.replace(f".modules_to_save.{_ADAPTER}.", ".").replace(
        f".{_ADAPTER}.weight", ".weight"
    )
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def save_adapter(
    model: PeftModel,
    folder: Path,
    base: str,
    weights: Mapping[str, torch.Tensor] | None = None,
    pissa: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write PEFT's two files, loadable on the untouched base by plain PEFT.

    `weights` (by `trainable`'s names) replaces the model's own, as gathered from ZeRO shards; `pissa` is what
    `start_pissa` took from the base.
    """
    from safetensors.torch import save_file

    held = dict(weights) if weights is not None else dict(trainable(model))
    config = copy.deepcopy(model.peft_config[_ADAPTER])
    if pissa:
        held = as_plain_lora(held, pissa)
        _double(config)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        saved_name(name): tensor.detach().to("cpu").contiguous() for name, tensor in held.items()
    }
    save_file(tensors, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _double(config: Any) -> None:
    """Twice the rank at the same scale."""
    factor = math.sqrt(2) if config.use_rslora else 2
    config.r, config.lora_alpha = config.r * 2, config.lora_alpha * factor
    config.rank_pattern = {key: r * 2 for key, r in config.rank_pattern.items()}
    config.alpha_pattern = {key: alpha * factor for key, alpha in config.alpha_pattern.items()}


def audit_adapter(
    folder: Path, model: PeftModel, trained: bool, pissa: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Refuse a saved adapter that cannot be what training made.

    Checks the key set and shapes against the model, that every value is finite and, when `trained`, that some B is not
    zero. Raises ValueError naming the tensor: an adapter that fails must never be reported.
    """
    import torch
    from safetensors.torch import load_file

    saved = load_file(str(folder / WEIGHTS_FILE))
    shapes = _shapes(model)
    if pissa:
        shapes = as_plain_lora(shapes, {name: shapes[name] for name in pissa})
    expected = {saved_name(name): tensor.shape for name, tensor in shapes.items()}
    if saved.keys() != expected.keys():
        odd = sorted(saved.keys() ^ expected.keys())
        raise ValueError(f"{folder}: {len(odd)} tensors missing or unexpected, first {odd[0]}")
    for name, tensor in saved.items():
        if tensor.shape != expected[name] or tensor.numel() == 0:
            raise ValueError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name])}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{folder}: {name} holds a value that is not finite")
    if trained and not any(tensor.any() for name, tensor in saved.items() if "lora_B" in name):
        raise ValueError(
            f"{folder}: every lora_B is zero after training, so the adapter does nothing"
        )


def _shapes(model: PeftModel) -> dict[str, torch.Tensor]:
    """The trainable parameters as empty tensors of their full shape (under ZeRO-3 the local shard is empty)."""
    import torch

    return {
        n: torch.empty(getattr(p, "ds_shape", p.shape), device="meta")
        for n, p in trainable(model).items()
    }


def saved_adapter(folder: Path, model: PeftModel, pissa: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter by their names in the file, once PEFT finds in the folder what `model` trains.

    PEFT puts the saved configuration on a base without weights, which wants these tensors, shapes and scales. With
    `pissa` the half that restores the untouched base is left out, since the live base is the residual. Raises ValueError.
    """
    import peft
    import torch
    from safetensors.torch import load_file

    config, base = peft.PeftConfig.from_pretrained(str(folder)), cast(Any, model).get_base_model()
    with torch.device("meta"):
        read = peft.PeftModel(type(base)(base.config), config, autocast_adapter_dtype=False)
    wanted = {
        n: t.shape
        for n, t in peft.get_peft_model_state_dict(read, save_embedding_layers=False).items()
    }
    tensors = load_file(str(folder / WEIGHTS_FILE))
    found = {name: tensor.shape for name, tensor in tensors.items()}
    odd = sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )
    if odd:
        raise ValueError(
            f"{folder}: PEFT reads {len(odd)} tensors otherwise than they were written, first {odd[0]}"
        )
    live = dict(model.named_modules())
    for name, layer in read.named_modules():
        scale = layer.scaling[_ADAPTER] if hasattr(layer, "lora_A") else 0.0
        if scale and not math.isclose(scale, live[name].scaling[_ADAPTER], rel_tol=1e-12):
            raise ValueError(
                f"{folder}: {name} reloads with scale {scale}, trained with {live[name].scaling[_ADAPTER]}"
            )
    return (
        {name: _first_half(name, tensor) for name, tensor in tensors.items()} if pissa else tensors
    )


def _first_half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    side = 0 if ".lora_A." in name else 1 if ".lora_B." in name else None
    return tensor if side is None else tensor.chunk(2, side)[0]


def load_adapter(model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Put tensors, by their names in an adapter file, into the live adapter; the names that this changes or leaves out."""
    import peft
    import torch

    before = {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in trainable(model).items()
    }
    result = peft.set_peft_model_state_dict(model, dict(tensors), adapter_name=_ADAPTER)
    missed = [*result.unexpected_keys, *(name for name in result.missing_keys if name in before)]
    return missed + [
        name
        for name, p in trainable(model).items()
        if not torch.equal(p.detach().cpu(), before[name])
    ]


def add_adapter(model: PreTrainedModel | PeftModel, name: str, folder: Path) -> PeftModel:
    """Load a saved adapter under `name` beside those already there and return the PEFT model (the first one wraps it).

    Raises UserError when the adapter does not fit the base or a file is missing or not safetensors.
    """
    import peft
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        tensors = load_file(str(folder / WEIGHTS_FILE))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder}: not an adapter that can be loaded: {' '.join(str(error).split())}"
        ) from error
    config.inference_mode = True
    if isinstance(model, peft.PeftModel):
        adapted = model
        adapted.add_adapter(name, config)
    else:
        adapted = peft.PeftModel(model, config, adapter_name=name, autocast_adapter_dtype=False)
    expected = peft.get_peft_model_state_dict(adapted, adapter_name=name)
    wrong = {k for k in expected.keys() | tensors.keys() if k not in expected or k not in tensors}
    wrong |= {k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape}
    if wrong:
        adapted.delete_adapter(
            name
        ) if adapted is model else adapted.unload()  # leave the model as it was
        raise UserError(
            f"{folder}: the adapter does not fit the base: {len(wrong)} tensors differ, first {min(wrong)}"
        )
    peft.set_peft_model_state_dict(adapted, tensors, adapter_name=name)
    adapted.requires_grad_(False)
    return adapted.eval()


@contextmanager
def one_adapter(model: PreTrainedModel | PeftModel, name: str | None) -> Iterator[None]:
    """Inside, every row runs with the adapter `name`, None being the plain base; DoRA and modules_to_save included."""
    import peft

    if not isinstance(model, peft.PeftModel):
        if name:
            raise ValueError(f"the base has no adapters, asked for {name}")
        yield
    elif name is None:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(name)
        model.requires_grad_(False)
        yield
