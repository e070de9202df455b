"""A base as its publisher describes it: the facts of config.json, read without transformers.

Reading takes a millisecond and neither torch nor weights, so every command looks here before it
starts anything. What these facts do not show, a trial on a tiny copy or the proof of the run does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.config.schema import ModelConfig
from pipelines.core.errors import UserError
from pipelines.storage import local_base_dir

_QUANTIZED_BY = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8 (FBGEMM)",
    "hqq": "HQQ",
    "mxfp4": "MXFP4",
    "bitsandbytes": "bitsandbytes",
    "bitnet": "BitNet",
    "aqlm": "AQLM",
    "modelopt": "ModelOpt",
    "exl2": "EXL2",
    "mlx": "MLX",
}
"""The names of quantizations by `quant_method`; another method is named as it is written."""

_QUANTIZATION_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}
"""Files of older tools, which leave config.json as it is."""

_PART = re.compile(
    r"(text|llm|language|vision|visual|audio|speech|image|video|thinker|talker|encoder|decoder"
    r"|depth_decoder|qformer|projector)\w*"
)
_OTHER_TASK = re.compile(
    r"For(Sequence|Token|Reward|Masked|Question|Multiple|Image|Audio|Speech|PreTraining|Next)"
)
_NUM_EXPERTS = re.compile(r"((num|n|moe_num)_(local_|routed_)?experts)|num_moe_experts")
_HAS_EXPERTS = ("is_moe", "enable_moe_block", "use_moe")
_RECURRENT_KIND = re.compile(
    r".*(linear|conv|mamba|recurrent|ssm|rwkv|lstm|hybrid|delta|lightning|retention).*"
)
_RECURRENT_KEYS = {
    "mamba": re.compile(r"mamba_\w+|n_mamba_heads|ssm_\w+|state_size"),
    "linear attention": re.compile(r"linear_(attn_config|num_\w+|conv_kernel_dim|head_dim)"),
    "recurrent": re.compile(r"lru_width|rwkv\w*|attention_hidden_size|gate_soft_cap"),
    "conv": re.compile(r"conv_L_cache"),
}
"""Kinds of layers that read earlier tokens without attention, by keys that only they have."""


@dataclass(frozen=True)
class PublishedBase:
    """The configuration of a base, by the keys of its config.json.

    `name` is `model.base` as the recipe gives it, for messages; `files` are the names of the files
    in its folder.
    """

    name: str
    values: Mapping[str, Any]
    files: frozenset[str] = frozenset()

    @property
    def model_type(self) -> str:
        return str(self.values.get("model_type") or "")

    @cached_property
    def quantization(self) -> str:
        """The format of a checkpoint that is quantized itself, such as `GPTQ, 4 bits`; else ""."""
        settings = next(
            (
                self.values[key]
                for key in ("quantization_config", "compression_config", "quantization")
                if isinstance(self.values.get(key), dict) and self.values[key]
            ),
            None,
        )
        if settings is None:
            dtype = str(self.values.get("dtype") or self.values.get("torch_dtype") or "")
            by_file = (name for file, name in _QUANTIZATION_FILES.items() if file in self.files)
            return next(by_file, "float8" if "float8" in dtype else "")
        method = str(settings.get("quant_method") or "")
        if not method:  # older files of bitsandbytes, and those of MLX
            method = "bitsandbytes" if "load_in_4bit" in settings else "mlx"
        name = _QUANTIZED_BY.get(method.lower(), method)
        bits = settings.get("bits") or settings.get("w_bit") or settings.get("nbits")
        if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
            bits = 4 if settings.get("load_in_4bit") else 8
        return f"{name}, {bits} bits" if bits else name

    @property
    def other_task(self) -> str:
        """The class of a model that does not continue texts, such as a classifier; else ""."""
        names = self.values.get("architectures") or ()
        return next((name for name in names if _OTHER_TASK.search(str(name))), "")

    @property
    def max_tokens(self) -> int | None:
        """The longest sample in tokens that the base has positions for, if it gives that."""
        keys = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")
        sizes = (self.values.get(key) for key in keys)
        return next((size for size in sizes if isinstance(size, int)), None)

    @cached_property
    def nested(self) -> str:
        """The key with the configuration of a part, such as `text_config`; "" without parts."""
        return next(
            (
                key
                for key, value in self.values.items()
                if key.endswith("_config")
                and isinstance(value, dict)
                and value
                and _PART.fullmatch(key.removesuffix("_config"))
            ),
            "",
        )

    @cached_property
    def num_experts(self) -> int:
        """The experts that a token is routed among; 0 for a dense model."""
        return max([0, *_expert_counts(self.values)])

    @cached_property
    def recurrent_layers(self) -> str:
        """The kinds of layers without attention, such as `mamba`; "" if there are none."""
        lists = [
            self.values[key]
            for key in ("layer_types", "layers_block_type", "block_types")
            if isinstance(self.values.get(key), list)
        ]
        if lists:  # complete lists: a Granite 4.0 Micro has mamba's sizes and no such layer
            kinds = dict.fromkeys(str(kind) for kinds in lists for kind in kinds)
            return ", ".join(kind for kind in kinds if _RECURRENT_KIND.fullmatch(kind))
        return next(
            (
                kind
                for kind, pattern in _RECURRENT_KEYS.items()
                if any(pattern.fullmatch(key) for key in self.values)
            ),
            "",
        )

    @property
    def windows(self) -> dict[str, int]:
        """The tokens that layers with a window attend to, by key; empty without such layers."""
        kinds = self.values.get("layer_types")
        if isinstance(kinds, list) and set(kinds) <= {"full_attention"}:
            return {}
        keys = ["attention_chunk_size", "attention_window_size", "keep_window_size", "window_size"]
        if self.values.get("use_sliding_window") is not False:
            keys.append("sliding_window")
        windows = {key: self.values.get(key) for key in keys}
        return {key: size for key, size in windows.items() if isinstance(size, int) and size > 0}

    @cached_property
    def rotation_limit(self) -> tuple[str, int] | None:
        """The rotation that a longer sample changes for its whole batch, and that length in tokens.

        LongRoPE and dynamic scaling choose their frequencies by the longest sample of a batch, so
        a short sample's result depends on its neighbours. None for a rotation that is fixed.
        """
        rotation = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(rotation, dict):
            return None
        parts = [each for each in rotation.values() if isinstance(each, dict)] or [rotation]
        longest = self.values.get("max_position_embeddings") or 0
        for part in parts:
            kind = str(part.get("rope_type") or part.get("type") or "")
            original = (
                part.get("original_max_position_embeddings")
                or self.values.get("original_max_position_embeddings")
                or longest
            )
            if kind in ("longrope", "su", "dynamic") and original:
                return ("LongRoPE" if kind != "dynamic" else "dynamic RoPE"), int(original)
        return None


def published_base(config: ModelConfig) -> PublishedBase:
    """Read the configuration of a recipe's base, from a folder or the Hub, without its weights.

    Raises UserError for a base that cannot be reached and for a config.json that is not an object.
    """
    folder = local_base_dir(config.base, config.revision, weights=False)
    return read_published(folder, config.base)


def read_published(folder: Path, name: str) -> PublishedBase:
    """Read the configuration of the base in `folder`, which messages call `name`."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict) or not values.get("model_type"):
        raise UserError(
            f"model.base={name}: its config.json has no model_type, so it is not a model that "
            "transformers can load: set the folder or Hub id of a base in transformers' format"
        )
    return PublishedBase(name, values, frozenset(path.name for path in folder.iterdir()))


def _expert_counts(values: Mapping[str, Any]) -> Iterator[int]:
    if any(values.get(key) is False for key in _HAS_EXPERTS):
        return
    for key, value in values.items():
        if isinstance(value, dict) and key == "ffn_config":
            yield from _expert_counts(value)
        elif _NUM_EXPERTS.fullmatch(key):
            numbers = value if isinstance(value, list) else [value]
            yield from (n for n in numbers if isinstance(n, int) and n > 1)
