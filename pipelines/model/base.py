"""The frozen base model: loaded in fp32, bf16 or fp16, or in 4-bit NF4 through bitsandbytes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.config.schema import ModelConfig
from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError
from pipelines.storage import local_base_dir, sha256_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "uint8": "uint8"}
_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")


def base_fingerprint(base: str, revision: str | None = None) -> str:
    """Hex sha256 over a base's architecture and weight files: equal for equal models wherever they lie."""
    folder = local_base_dir(base, revision)
    config = json.loads((folder / "config.json").read_text())
    for volatile in ("_name_or_path", "transformers_version"):
        config.pop(volatile, None)
    weights = weight_files(base, revision)
    return digest_of({"config": config, "weights": {p.name: sha256_file(p) for p in weights}})


def weight_files(base: str, revision: str | None = None) -> list[Path]:
    """A base's safetensors files and their index. Raises UserError when there are none or the base is not reachable."""
    folder = local_base_dir(base, revision)
    weights = sorted({p for pattern in _WEIGHT_PATTERNS for p in folder.glob(pattern)})
    if not weights:
        raise UserError(
            f"model.base={base}: no *.safetensors in {folder}; other weight formats can run code and are refused"
        )
    return weights


def resolve_dtype(config: ModelConfig, device: str) -> torch.dtype:
    """The torch dtype of the recipe's `model.dtype`; auto is bf16 on a GPU and fp32 on CPU."""
    import torch

    name = config.dtype
    if name == "auto":
        name = "fp32" if device == "cpu" else "bf16"
    return getattr(torch, _TORCH_NAMES[name])


def default_device() -> str:
    """The GPU where there is one, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_base(
    config: ModelConfig, device: str | None = None, attention: str = "sdpa"
) -> PreTrainedModel:
    """Load the base, frozen and in eval mode, on `device` (None: the GPU where there is one).

    With `quantization: nf4` (or `int8`) every linear but the head is a bitsandbytes Linear4bit (Linear8bitLt), with `fp8`
    a Fp8Linear. Weights
    come from safetensors only and no code from the model's folder runs. Raises UserError when it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    device = device or default_device()
    dtype = resolve_dtype(config, device)
    folder = local_base_dir(config.base, config.revision)
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attention,
        "device_map": {"": device},
    }
    if config.quantization in ("nf4", "int8"):
        options["quantization_config"] = _quantization(config, dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"model.base={config.base}: cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Else bitsandbytes repacks a 4-bit weight in its first eval forward on CPU, and PEFT's merge and DoRA, which
            # dequantize it, then read wrong numbers.
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
    model.requires_grad_(False)
    if config.quantization == "fp8":
        _make_fp8(model)
    return model.eval()


def _make_fp8(model: PreTrainedModel) -> None:
    import torch

    from pipelines.layers.fp8 import fp8_unsupported, to_fp8

    reason = fp8_unsupported(model.device)
    for name, module in model.named_modules():
        odd = type(module) is torch.nn.Linear and (
            module.in_features % 16 or module.out_features % 16
        )
        if odd and model.device.type == "cuda":
            reason = (
                f"{name} is {module.in_features} to {module.out_features} wide, no multiples of 16"
            )
    if reason:
        raise UserError(f"model.quantization=fp8: {reason}: set model.quantization=none or nf4")
    to_fp8(model, cast(Any, model).get_output_embeddings())


def _quantization(config: ModelConfig, dtype: torch.dtype) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if config.quantization == "int8":
        # It says in every forward that it casts the activations.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)

    def named(name: str) -> torch.dtype:
        return dtype if name == "auto" else getattr(torch, _TORCH_NAMES[name])

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=named(config.compute_dtype),
        bnb_4bit_quant_storage=named(config.storage_dtype),
    )


def meta_model(config: ModelConfig) -> PreTrainedModel:
    """The base's architecture without weights, on the meta device: costs no memory and needs only its config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = local_base_dir(config.base, config.revision, weights=False)
    architecture = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            architecture, dtype=resolve_dtype(config, default_device())
        )
