"""The state in which a base is proven, and transformers' attention functions under their names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import eager_mask

EAGER, SDPA = "eager", "sdpa"
EAGER_RECAST = "loraforge_eager_recast"
"""The base's own eager attention in another precision: in fp32, or in bf16 for an fp32 model."""


@contextmanager
def proof_mode(model: torch.nn.Module) -> Iterator[None]:
    """Inside, no dropout, no gradient checkpointing, and no outliers in 8-bit linears.

    bitsandbytes computes those columns in 16 bits that have an outlier in any token of the input
    (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339), so that a sample's rounding would depend on
    the samples around it.
    """
    modes = [(module, module.training) for module in model.modules()]
    states: list[Any] = [getattr(module, "state", None) for module in model.modules()]
    thresholds = [(state, state.threshold) for state in states if hasattr(state, "threshold")]
    model.eval()
    for state, _ in thresholds:
        state.threshold = 0.0
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for state, threshold in thresholds:
            state.threshold = threshold


@contextmanager
def attention_named(name: str, model: torch.nn.Module) -> Iterator[None]:
    """Inside, every configuration of the model names this attention function."""
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        for config, _ in before:
            config._attn_implementation = name
        yield
    finally:
        # Setting a configuration sets those inside of it, too, and those come later in the list.
        for config, attention in before:
            config._attn_implementation = attention


@contextmanager
def without_zero_adapters(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model runs without its adapters if all of them add zero, which is cheaper.

    They do at the start of a run with the usual initialization, where every B is zero. Adapters
    whose weights ZeRO-3 has sharded stay on.
    """
    adapters = [module for module in model.modules() if hasattr(module, "lora_B")]
    weights = [
        weight
        for module in adapters
        for name, weight in module.named_parameters()
        if "lora_B" in name or "lora_embedding_B" in name
    ]
    if any(hasattr(weight, "ds_id") for weight in weights) or any(
        bool(weight.detach().any()) for weight in weights
    ):
        yield
        return
    layers: list[Any] = [module for module in adapters if hasattr(module, "_disable_adapters")]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


@contextmanager
def unreached_adapters(model: torch.nn.Module) -> Iterator[list[str]]:
    """Inside, notes which adapted modules are called; afterwards the list has the names of others.

    Adapters of single experts are left out: a router may send them no token.
    """
    adapted = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") or hasattr(module, "modules_to_save")
    }
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in adapted.items()
    ]
    names: list[str] = []
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()
    names += [name for name in adapted if name not in called and "experts" not in name.split(".")]


def supports_sdpa(model: torch.nn.Module) -> bool:
    """Whether transformers' own sdpa attention computes every layer of the model."""
    return all(getattr(module, "_supports_sdpa", True) for module in model.modules())


def computes_in_fp32(model: torch.nn.Module) -> bool:
    """Whether every product of the model is computed in fp32."""
    return all(_module_computes_in_fp32(module) for module in model.modules())


def _module_computes_in_fp32(module: torch.nn.Module) -> bool:
    if hasattr(module, "compute_dtype"):  # a Linear4bit, whose weights are bits of any dtype
        return module.compute_dtype in (None, torch.float32)
    return all(each.dtype == torch.float32 for each in module.parameters(recurse=False))


def _configs(model: torch.nn.Module) -> list[Any]:
    """The model's configuration and those inside of it, then those that modules have of their own.

    Modules read the attention's name from their own configuration in every forward.
    """
    configs: dict[int, Any] = {}

    def add(config: Any) -> None:
        if isinstance(config, PretrainedConfig) and id(config) not in configs:
            configs[id(config)] = config
            for value in list(vars(config).values()):
                add(value)

    for module in model.modules():
        add(getattr(module, "config", None))
    return list(configs.values())


def _eager_recast(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Any:
    """The function `eager_attention_forward` of the file that defines the attention module."""
    own = query.dtype
    other = torch.bfloat16 if own == torch.float32 else torch.float32
    eager: Any = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    mask = None if attention_mask is None else attention_mask.to(other)
    out, weights = eager(module, query.to(other), key.to(other), value.to(other), mask, **options)
    return out.to(own), weights


AttentionInterface.register(EAGER_RECAST, _eager_recast)
AttentionMaskInterface.register(EAGER_RECAST, eager_mask)
