"""Where an adapter starts when not at B = 0: PiSSA, LoftQ and EVA.

PiSSA (Meng et al. 2024, arXiv:2404.02948) puts the r largest singular directions of W0 into B A and leaves the rest as
the frozen weight. LoftQ (Li et al. 2023, arXiv:2310.08659), with one iteration on a base that is already 4-bit, puts
those of the rounding error W0 - Q there. EVA (Paischer et al. 2024, arXiv:2410.07170) sets A to the first principal
directions of each layer's inputs on real rows and keeps B = 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

_ADAPTER = "default"


def start_pissa(
    model: PeftModel, held: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Move the principal part of every adapted weight into its adapter and return that part by parameter name.

    `held` is the part that an earlier start returned: a resumed run subtracts the same numbers from the base, whatever
    this machine's SVD would give.
    """
    import torch

    part = {}
    for name, layer in _layers(model):
        weight, scale = layer.get_base_layer().weight, layer.scaling[_ADAPTER]
        keys = [f"{name}.lora_{side}.{_ADAPTER}.weight" for side in "AB"]
        if held is None:
            a, b = _principal(weight.detach().float(), layer.r[_ADAPTER], scale)
        else:
            a, b = (held[key].to(weight.device) for key in keys)
        with torch.no_grad():
            weight.copy_(weight.float() - scale * (b @ a))
        _set(layer, a, b)
        part |= {keys[0]: a.cpu().clone(), keys[1]: b.cpu().clone()}
    return part


def start_loftq(model: PeftModel, folder: Path) -> None:
    """Let every adapter correct the rounding of its 4-bit weight; `folder` holds the base's own safetensors."""
    import bitsandbytes.functional as bnb

    for name, layer in _layers(model):
        quantized = layer.get_base_layer().weight
        held = bnb.dequantize_4bit(quantized.data, quantized.quant_state).float()
        original = (
            _stored(folder, name.removeprefix("base_model.model.") + ".weight")
            .to(held.device)
            .float()
        )
        _set(layer, *_principal(original - held, layer.r[_ADAPTER], layer.scaling[_ADAPTER]))


def start_eva(model: PeftModel, batches: Iterable[Mapping[str, Any]], num_batches: int) -> None:
    """Set every A [r, in] to the first principal directions of its layer's inputs over `num_batches` forwards.

    `batches` gives the forward's keyword arguments. Costs one [in, in] fp32 matrix a distinct layer width and layer.
    """
    import torch

    moments: dict[str, torch.Tensor] = {}

    def collect(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach().flatten(0, -2).float()
            moments[name] = moments.get(name, 0) + x.T @ x

        return hook

    hooks = [layer.register_forward_pre_hook(collect(name)) for name, layer in _layers(model)]
    with torch.no_grad():
        for _, batch in zip(range(num_batches), batches, strict=False):
            cast(Any, model).get_base_model().model(**batch)
    for hook in hooks:
        hook.remove()
    for name, layer in _layers(model):
        _, vectors = torch.linalg.eigh(moments[name].double())
        rank = layer.r[_ADAPTER]
        _set(layer, vectors[:, -rank:].flip(1).T.float(), None)


def as_plain_lora(
    weights: Mapping[str, torch.Tensor], part: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What training on a PiSSA residual learnt, as LoRA on the untouched base: B A - B0 A0 with twice the rank.

    The scale must stay, so the configuration's alpha doubles with r (grows by sqrt 2 when rank-stabilised).
    """
    import torch

    joined = dict(weights)
    for name, start in part.items():
        side = (
            torch.cat([weights[name], start], 0)
            if ".lora_A." in name
            else torch.cat([weights[name], -start], 1)
        )
        joined[name] = side.contiguous()
    return joined


def _layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and _ADAPTER in module.lora_A:
            yield name, module


def _principal(matrix: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, in] and B [out, r] with scale * B A = the best rank-r approximation of `matrix` [out, in]."""
    import torch

    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return (root[:, None] * vh[:rank]).contiguous(), (u[:, :rank] * root).contiguous()


def _set(layer: Any, a: torch.Tensor, b: torch.Tensor | None) -> None:
    import torch

    with torch.no_grad():
        layer.lora_A[_ADAPTER].weight.copy_(a)
        if b is not None:
            layer.lora_B[_ADAPTER].weight.copy_(b)


def _stored(folder: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    file = (
        json.loads(index.read_text())["weight_map"][name] if index.exists() else "model.safetensors"
    )
    with safe_open(str(folder / file), framework="pt") as stored:
        return stored.get_tensor(name)
