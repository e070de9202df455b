"""Initial values of an adapter other than B = 0 (PEFT's init_lora_weights): PiSSA, LoftQ and EVA.

PiSSA (Meng et al. 2024, arXiv:2404.02948) puts the r largest singular directions of W0 into B A and
keeps the remainder as the frozen weight. LoftQ (Li et al. 2023, arXiv:2310.08659), with one
iteration on a base that is already 4-bit, puts those of the rounding error W0 - Q there. EVA
(Paischer et al. 2024, arXiv:2410.07170) sets A to the first principal directions of each layer's
inputs on real rows and keeps B = 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.adapter_format.keys import ADAPTER_NAME, KEY_PREFIX

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def init_pissa(
    model: PeftModel, earlier: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Move the principal part of every adapted weight into its adapter.

    Returns that part, A0 and B0 by parameter name. A resumed run passes it as `earlier`: then the
    same numbers are subtracted from the base, even if this machine's SVD gives slightly different
    ones.
    """
    import torch

    principal = {}
    for name, layer in _layers(model):
        weight, scale = layer.get_base_layer().weight, layer.scaling[ADAPTER_NAME]
        keys = [f"{name}.lora_{side}.{ADAPTER_NAME}.weight" for side in "AB"]
        if earlier is None:
            a, b = _principal(weight.detach().float(), layer.r[ADAPTER_NAME], scale)
        else:
            a, b = (earlier[key].to(weight.device) for key in keys)
        # The base becomes the residual in place: step 0 computes W0, up to rounding to its dtype.
        with torch.no_grad():
            weight.copy_(weight.float() - scale * (b @ a))
        _set(layer, a, b)
        principal |= {keys[0]: a.cpu().clone(), keys[1]: b.cpu().clone()}
    return principal


def init_loftq(model: PeftModel, folder: Path) -> None:
    """Let every adapter correct the rounding error of its 4-bit weight.

    `folder` contains the base's safetensors, from which the unquantized weights are read.
    """
    import bitsandbytes.functional as bnb

    for name, layer in _layers(model):
        quantized = layer.get_base_layer().weight
        rounded = bnb.dequantize_4bit(quantized.data, quantized.quant_state).float()
        original = (
            _stored_tensor(folder, name.removeprefix(KEY_PREFIX) + ".weight")
            .to(rounded.device)
            .float()
        )
        _set(
            layer,
            *_principal(original - rounded, layer.r[ADAPTER_NAME], layer.scaling[ADAPTER_NAME]),
        )


def init_eva(model: PeftModel, batches: Iterable[Mapping[str, Any]], num_batches: int) -> None:
    """Set every A [r, in] to the principal directions of its layer's inputs.

    The inputs are those of `num_batches` forwards, whose keyword arguments `batches` yields. Takes
    one [in, in] fp32 matrix of memory per adapted layer.
    """
    import torch

    moments: dict[str, torch.Tensor] = {}

    def collect(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            # Second moments are enough for the principal directions, and take [in, in] only.
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
        rank = layer.r[ADAPTER_NAME]
        # eigh sorts ascending, so the principal directions are the last columns, reversed.
        _set(layer, vectors[:, -rank:].flip(1).T.float(), None)


def as_plain_lora(
    weights: Mapping[str, torch.Tensor], principal: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """An adapter trained on a PiSSA residual, as LoRA of twice the rank on the untouched base.

    The residual is W0 - scale * B0 A0, so the update of W0 is scale * (B A - B0 A0), which is the
    product of [B, -B0] and [A; A0]. `principal` are A0 and B0. The scale must stay the same, so the
    configuration's alpha doubles with r (grows by sqrt 2 when rank-stabilised).
    """
    import torch

    doubled = dict(weights)
    for name, initial in principal.items():
        doubled[name] = (
            torch.cat([weights[name], initial], 0)
            if ".lora_A." in name
            else torch.cat([weights[name], -initial], 1)
        ).contiguous()
    return doubled


def _layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and ADAPTER_NAME in module.lora_A:
            yield name, module


def _principal(matrix: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, in] and B [out, r] with scale * B A = the best rank-r approximation of `matrix` [out,
    in].
    """
    import torch

    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = (s[:rank] / scale).sqrt()  # the singular values, shared equally between A and B
    return (root[:, None] * vh[:rank]).contiguous(), (u[:, :rank] * root).contiguous()


def _set(layer: Any, a: torch.Tensor, b: torch.Tensor | None) -> None:
    import torch

    with torch.no_grad():
        layer.lora_A[ADAPTER_NAME].weight.copy_(a)
        if b is not None:
            layer.lora_B[ADAPTER_NAME].weight.copy_(b)


def _stored_tensor(folder: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    file = (
        json.loads(index.read_text())["weight_map"][name] if index.exists() else "model.safetensors"
    )
    with safe_open(str(folder / file), framework="pt") as tensors:
        return tensors.get_tensor(name)
