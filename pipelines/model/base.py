"""Load the frozen base model: fp32, bf16 or fp16, quantized by bitsandbytes, or as float8."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.config.schema import ModelConfig
from pipelines.core.errors import UserError, one_line
from pipelines.model.published import PublishedBase, read_published
from pipelines.model.supported import check_layout, load_refusal, quantize_refusal, refuse
from pipelines.storage import local_base_dir

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

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
    config: ModelConfig, device: str | None = None, attention: str | None = None
) -> PreTrainedModel:
    """Load the base, frozen and in eval mode, on `device` (None: the GPU where there is one).

    `attention` names an attention function of transformers; None is sdpa, or the base's own where
    it cannot use sdpa. Every linear but the head becomes a bitsandbytes Linear4bit with
    `quantization: nf4`, a Linear8bitLt with `int8` and a Fp8Linear with `fp8`. Weights come from
    safetensors only, and no code from the model's folder runs. Raises UserError when the base
    cannot be loaded, is quantized itself, or lacks weights.
    """
    from transformers import AutoModelForCausalLM

    device = device or default_device()
    dtype = resolve_dtype(config, device)
    folder = local_base_dir(config.base, config.revision)
    architecture = _architecture(folder, config)
    options: dict[str, Any] = {
        "config": architecture,
        "dtype": dtype,
        "attn_implementation": attention,
        "device_map": {"": device},
    }
    if attention not in (None, "eager", "sdpa"):
        check_layout(_model_class(architecture), config.base)
    if config.quantization in ("nf4", "int8"):
        options["quantization_config"] = _quantization(config, dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"model.base={config.base}: cannot be loaded: {one_line(error)}") from error
    model, report = loaded
    _check_weights(model, report, config.base)
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
    """The base's architecture on the meta device: takes no memory, needs only its config.json.

    Raises UserError for a base that `load_base` would refuse for its configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = local_base_dir(config.base, config.revision, weights=False)
    architecture = _architecture(folder, config)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                architecture, dtype=resolve_dtype(config, default_device())
            )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"model.base={config.base}: transformers cannot build it: {one_line(error)}"
        ) from error


def _architecture(folder: Path, config: ModelConfig) -> PreTrainedConfig:
    """The configuration of the base in `folder`. Raises UserError if no model can be built."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    base = read_published(folder, config.base)
    refuse(base, load_refusal(base))
    try:
        architecture = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise UserError(
            f"model.base={config.base}: transformers {transformers.__version__} cannot read its "
            f"configuration of the architecture {base.model_type!r} ({one_line(error, 200)}): "
            "choose a base of an architecture that it has"
        ) from error
    # Values that the file leaves out come from the class, such as the number of experts.
    complete = PublishedBase(config.base, architecture.to_dict())
    refuse(base, quantize_refusal(complete, config.quantization))
    architecture.name_or_path = config.base  # for messages; the Hub's snapshot has a long path
    return architecture


def _model_class(architecture: PreTrainedConfig) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM._model_mapping[type(architecture)]


def _check_weights(model: PreTrainedModel, report: Any, base: str) -> None:
    """Raise UserError unless the checkpoint has every weight of the model, and uses all its own.

    transformers fills a missing weight with random numbers, and drops one that the architecture
    does not have, such as the scales of a quantized weight, with no more than a warning.
    """
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if missing:
        raise UserError(
            f"model.base={base}: {len(missing)} of its weights are not in the checkpoint or have "
            f"another shape, first {missing[0]}, so they would be random: download it again, or "
            "set a complete causal language model"
        )
    leaves = {name for name, module in model.named_modules() if not any(module.children())}
    unused = sorted(key for key in report["unexpected_keys"] if key.rpartition(".")[0] in leaves)
    if unused:
        raise UserError(
            f"model.base={base}: its checkpoint has {len(unused)} tensors that its architecture "
            f"does not use, first {unused[0]}, so the model would be another one than was "
            "published: set a base whose config.json fits its weights"
        )
