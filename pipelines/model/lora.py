"""Attach a trainable LoRA adapter to a frozen base.

h = W0 x + scale * B A x with A [r, in] and B [out, r] (LoRA: Hu et al. 2021, arXiv:2106.09685); the
formula of `scale` is `adapter_format.scale`. B starts at zero, so the model of step 0 is the base.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING, Any, cast

from pipelines.adapter_format.keys import ADAPTER_NAME
from pipelines.config.schema import TARGET_PRESETS, LoraConfig
from pipelines.core.errors import UserError, one_line
from pipelines.model.supported import adapter_refusal, published_values, refuse

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


_ATTENTION = re.compile(r"\.(self_)?att(n|ention)\.")


def attach(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """Put a fresh trainable adapter on a frozen base; A is drawn from `seed`, B is zero, both fp32.

    Raises UserError for a name in `lora.targets`, `modules_to_save` or a pattern that matches no
    module of the model, for a rank that a layer cannot have, and for adapters on experts or their
    router. PEFT ignores a name without a match as long as another name matches.
    """
    import peft
    import torch

    base = published_values(model.config)
    refuse(base, adapter_refusal(base, config))

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
        # Copies, because PEFT writes the patterns of converted experts into them.
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=cast(Any, dict(config.alpha_pattern)),
        modules_to_save=config.modules_to_save or None,
        task_type="CAUSAL_LM",
    )
    _check_names(model, config, targets)
    try:
        # The global random state must not move: data order and dropout are drawn from it later.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise UserError(
            f"lora.targets={config.targets!r} cannot be adapted: {one_line(error)}; "
            f"{_linears(model)}"
        ) from error
    if base.num_experts:
        _check_experts(adapted, config, base.num_experts)
    _check_layers(adapted, config)
    for parameter in trainable_parameters(adapted).values():
        parameter.data = parameter.data.float()
    return cast("PeftModel", adapted)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that require a gradient, by name, in the model's own order."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def attention_targets(model: PreTrainedModel) -> list[str]:
    """The names of the linear modules of a model's attention, such as q_proj.

    Names that other modules have, too, are left out, unless there are no others.
    """
    import torch

    linears = [name for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)]
    inside = {name for name in linears if _ATTENTION.search(name)}
    last_names = {name.rsplit(".", 1)[-1] for name in inside}
    outside = {name.rsplit(".", 1)[-1] for name in linears if name not in inside}
    return sorted(last_names - outside or last_names)


def _check_names(model: PreTrainedModel, config: LoraConfig, targets: str | list[str]) -> None:
    modules = [name for name, _ in model.named_modules()]
    requested = {
        "targets": [] if isinstance(targets, str) else targets,
        "modules_to_save": config.modules_to_save,
    }
    for key, names in requested.items():
        for name in names:
            if not any(f".{module}".endswith(f".{name}") for module in modules):
                last_names = {module.rsplit(".", 1)[-1] for module in modules}
                near = difflib.get_close_matches(name, last_names, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; {_linears(model)}"
                raise UserError(
                    f"lora.{key}={getattr(config, key)!r}: the base has no module {name!r}{hint}"
                )
    for key, pattern in _patterns(config).items():
        for name, value in pattern.items():
            try:
                re.compile(name)
            except re.error as error:
                raise UserError(
                    f"lora.{key}: {name!r} is not a regular expression ({error})"
                ) from error
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"lora.{key}: {name}: {value} given, must be greater than 0")


def _patterns(config: LoraConfig) -> dict[str, dict[str, Any]]:
    return {"rank_pattern": dict(config.rank_pattern), "alpha_pattern": dict(config.alpha_pattern)}


def _linears(model: PreTrainedModel) -> str:
    import torch

    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    return f"its linear modules are {', '.join(sorted(names))}"


def _check_experts(model: PeftModel, config: LoraConfig, num_experts: int) -> None:
    """Raise UserError if a trained module is an expert or a router.

    PEFT adapts experts that are one parameter under the name of their linears.
    """
    for name, module in model.get_base_model().named_modules():
        is_trained = hasattr(module, "lora_A") or name.rsplit(".", 1)[-1] in config.modules_to_save
        scores_experts = getattr(module, "out_features", None) == num_experts
        is_router = scores_experts and not _ATTENTION.search(name)
        if is_trained and (is_router or "experts" in name.split(".")):
            names = attention_targets(cast(Any, model).get_base_model())
            raise UserError(
                f"lora.targets={config.targets!r}: {name} is one of {num_experts} experts or their "
                "router, and the loss that balances them is not computed: set lora.targets to the "
                f"names of its attention's modules, {', '.join(names)}"
            )


def _check_layers(model: PeftModel, config: LoraConfig) -> None:
    layers: dict[str, Any] = {
        name: module
        for name, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_A")
    }
    for key, pattern in _patterns(config).items():
        for name in pattern:
            if not any(re.match(rf"(.*\.)?({name})$", layer) for layer in layers):
                adapted = sorted({layer.rsplit(".", 1)[-1] for layer in layers})
                raise UserError(
                    f"lora.{key}: {name!r} matches none of the adapted modules, which are "
                    f"{', '.join(adapted)}"
                )
    for name, layer in layers.items() if config.init != "zero" else ():
        # PiSSA and LoftQ take singular directions of the weight, EVA principal ones of the input.
        max_rank = (
            layer.in_features
            if config.init == "eva"
            else min(layer.in_features, layer.out_features)
        )
        if layer.r[ADAPTER_NAME] > max_rank:
            raise UserError(
                f"lora.init={config.init} finds at most {max_rank} directions in {name}, but its "
                f"rank is {layer.r[ADAPTER_NAME]}: set lora.r={max_rank} or lower, or "
                f"lora.init=zero"
            )
