"""Load the frozen base model: fp32, bf16 or fp16, quantized by bitsandbytes, or as float8."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from pipelines.config.schema import ModelConfig
from pipelines.core.errors import UserError
from pipelines.storage import local_base_dir

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "uint8": "uint8"}


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

    Every linear but the head becomes a bitsandbytes Linear4bit with `quantization: nf4`, a
    Linear8bitLt with `int8` and a Fp8Linear with `fp8`. Weights come from safetensors only, and no
    code from the model's folder runs. Raises UserError when the base cannot be loaded.
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
            # With True, bitsandbytes repacks a 4-bit weight in its first eval forward on a CPU, and
            # PEFT's merge and DoRA, which dequantize the weight, then read wrong numbers.
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
    model.requires_grad_(False)
    if config.quantization == "fp8":
        _make_fp8(model)
    return model.eval()


def _make_fp8(model: PreTrainedModel) -> None:
    from pipelines.layers.fp8 import to_fp8
    from pipelines.model.supported import check_fp8

    check_fp8(model)
    to_fp8(model, cast(Any, model).get_output_embeddings())


def _quantization(config: ModelConfig, dtype: torch.dtype) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if config.quantization == "int8":
        # bitsandbytes logs in every forward that it casts the activations.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)

    def dtype_of(name: str) -> torch.dtype:
        return dtype if name == "auto" else getattr(torch, _TORCH_NAMES[name])

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=dtype_of(config.compute_dtype),
        bnb_4bit_quant_storage=dtype_of(config.storage_dtype),
    )


def meta_model(config: ModelConfig) -> PreTrainedModel:
    """The base's architecture on the meta device: takes no memory, needs only its config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = local_base_dir(config.base, config.revision, weights=False)
    architecture = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            architecture, dtype=resolve_dtype(config, default_device())
        )
