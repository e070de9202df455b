"""The frozen base model: loaded in fp32, bf16 or fp16, or in 4-bit NF4 through bitsandbytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.contracts import UserError, digest_of
from pipelines.recipe import ModelConfig
from pipelines.storage import sha256_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")


def local_base_dir(base: str, revision: str | None = None) -> Path:
    """The folder with a base's files: `base` itself, or the Hub snapshot, fetched once into the Hub's own cache.

    Raises UserError when neither a model folder nor a reachable Hub id is given.
    """
    folder = Path(base)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model.base={base}: the folder holds no config.json, so it is no model")
        return folder
    if base.startswith(("/", ".", "~")) or base.count("/") > 1:
        raise UserError(f"model.base={base}: no such folder")
    import huggingface_hub
    import huggingface_hub.errors

    try:
        patterns = [*_WEIGHT_PATTERNS, "*.json", "*.jinja", "tokenizer*"]
        return Path(huggingface_hub.snapshot_download(base, revision=revision, allow_patterns=patterns))
    except (OSError, huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.base={base}: not a folder, and the Hub did not give it ({reason}); "
            "set a folder, or check the id, the network and HF_TOKEN"
        ) from error


def base_fingerprint(base: str, revision: str | None = None) -> str:
    """Hex sha256 over a base's architecture and weight files: equal for equal models wherever they lie."""
    folder = local_base_dir(base, revision)
    config = json.loads((folder / "config.json").read_text())
    for volatile in ("_name_or_path", "transformers_version"):
        config.pop(volatile, None)
    weights = sorted({p for pattern in _WEIGHT_PATTERNS for p in folder.glob(pattern)})
    if not weights:
        raise UserError(
            f"model.base={base}: no *.safetensors in {folder}; other weight formats can run code and are refused"
        )
    return digest_of({"config": config, "weights": {p.name: sha256_file(p) for p in weights}})


def resolve_dtype(config: ModelConfig, device: str) -> torch.dtype:
    """The torch dtype of the recipe's `model.dtype`; auto is bf16 on a GPU and fp32 on CPU."""
    import torch

    name = config.dtype
    if name == "auto":
        name = "fp32" if device == "cpu" else "bf16"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_base(config: ModelConfig, device: str | None = None, attention: str = "sdpa") -> PreTrainedModel:
    """Load the base, frozen and in eval mode, on `device` (None: the GPU where there is one).

    With `quantization: nf4` every linear but the head is a bitsandbytes Linear4bit with double quantization. Weights
    come from safetensors only and no code from the model's folder runs. Raises UserError when it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    device = device or default_device()
    dtype = resolve_dtype(config, device)
    folder = local_base_dir(config.base, config.revision)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention, "device_map": {"": device}}
    if config.quantization == "nf4":
        options["quantization_config"] = _nf4_config(dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.base={config.base}: cannot be loaded: {' '.join(str(error).split())}") from error
    model.requires_grad_(False)
    return model.eval()


def _nf4_config(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )
