"""A tiny random copy of a base, made from its configuration alone.

The copy has the base's layers, norms, biases, rotation, caps and tied weights, because it keeps
every value of the configuration that is not a size. Two or a few layers contain each kind of layer
of the base, and nothing is zero that training could have made nonzero: norms, biases, sinks and
routers are random. What the product computes wrongly for the base, it computes wrongly for the
copy, too, in milliseconds and on any machine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TINY_VOCABULARY = 160

_SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), TINY_VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"), 96),
    **dict.fromkeys(("intermediate_size_mlp", "prefix_dense_intermediate_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "router_hidden_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("attention_heads", "num_attention_heads_per_layer", "index_n_heads"), 4),
    **dict.fromkeys(("head_dim", "kv_channels", "v_head_dim", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("index_head_dim", "hidden_size_per_layer_input", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "laurel_rank", "adapter_rank", "rotary_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "qk_head_dim"), 24),
    **dict.fromkeys(("n_positions", "n_ctx", "max_seq_len", "context_length"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts", "zero_expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k"), 2),
    **dict.fromkeys(("num_experts_per_token", "top_k_experts", "n_group", "num_expert_group"), 2),
    **dict.fromkeys(("topk_group", "moe_num_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("n_shared_experts", "n_groups", "mamba_n_groups", "num_mem_blocks"), 1),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim", "chunk_size"), 16),
    **dict.fromkeys(("mamba_chunk_size", "block_size"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_dt_rank"), 8),
    **dict.fromkeys(("time_step_rank", "index_topk"), 8),
    "mamba_d_ssm": 128,
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 4),
    "linear_num_key_heads": 2,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("attention_hidden_size",), 128),
    "attention_head_dim": 32,
    "audio_vocab_size": TINY_VOCABULARY,
}
"""Sizes by key. A value that the base does not have, such as a null or a zero, stays."""

_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "num_query_groups", "kv_n_heads")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SECTIONS = ("attn_config", "ffn_config")
_WINDOWS = (
    "sliding_window",
    "window_size",
    "attention_window_size",
    "attention_chunk_size",
    "keep_window_size",
    "floor_scale",
)
_NO_WINDOW = 512  # tokens that no sample of a trial has
_SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MAX_KINDS = 4  # a list with more distinct values per layer than this has no kinds of layers

# Sizes that must fit other sizes, or a number of layers in which each kind of layer occurs.
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8},
    "falcon": {"num_kv_heads": 4},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "bamba": {"attn_layer_indices": [1]},
    "mimo_v2_flash": {"head_dim": 24},
    "zaya": {"num_experts_per_tok": 1},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
}


def tiny_values(values: Mapping[str, Any], window: int | None = None) -> dict[str, Any]:
    """The values of a complete configuration, its sizes replaced by tiny ones.

    With `window` every window of attention, and the length at which a rotation changes with the
    longest sample, is that many tokens; without it they are longer than a tiny sample.
    """
    layers_key = next((key for key in _LAYERS if isinstance(values.get(key), int)), "")
    per_layer = {
        key: value
        for key, value in values.items()
        if isinstance(value, list) and len(value) == values.get(layers_key) and len(value) > 2
    }
    num_layers = max([2, *map(_layers_with_each_kind, per_layer.values())])
    tiny: dict[str, Any] = {}
    for key, value in values.items():
        if key in per_layer:
            tiny[key] = [_size(key, each) for each in value[:num_layers]]
        elif key == layers_key:
            tiny[key] = num_layers
        elif key in _KV_HEADS and isinstance(value, int):
            tiny[key] = _kv_heads(value, values)
        elif key == "head_dim" and value is None:
            continue  # the class derives it from the other sizes
        elif key == "head_dim" and value == values.get("qk_rope_head_dim"):
            tiny[key] = _SIZES["qk_rope_head_dim"]
        elif key.endswith(("token_id", "token_index")) and value is not None:
            tiny[key] = _SPECIAL_IDS.get(key, 3)
        elif key in _WINDOWS and isinstance(value, int) and value > 0:
            tiny[key] = window or max(value, _NO_WINDOW)
        elif key == "rope_parameters" and isinstance(value, dict):
            tiny[key] = _rotation(value, values, window)
        elif key in _SECTIONS and isinstance(value, dict):
            tiny[key] = {
                name: _kv_heads(each, values) if name in _KV_HEADS else _size(name, each)
                for name, each in value.items()
            }
        elif key == "per_layer_config" and isinstance(value, dict):
            tiny[key] = {
                layer: {name: _size(name, each) for name, each in sizes.items()}
                for layer, sizes in value.items()
                if int(layer) < num_layers
            }
        else:
            tiny[key] = _size(key, value)
    if not values.get("rope_parameters") and tiny.get("max_position_embeddings"):
        tiny["max_position_embeddings"] = 512  # one learned vector per position
    elif window and "dynamic" in str(values.get("rope_parameters")):
        tiny["max_position_embeddings"] = window
    if window and tiny.get("original_max_position_embeddings"):
        tiny["original_max_position_embeddings"] = window
    for key in ("_name_or_path", "transformers_version", "id2label", "label2id"):
        tiny.pop(key, None)
    own = _OWN_SIZES.get(str(values.get("model_type")), {})
    return tiny | {
        key: value
        for key, value in own.items()
        if values.get(key) is not None or key in ("attn_layer_indices",)
    }


def save_tiny_base(values: Mapping[str, Any], folder: Path, window: int | None = None) -> None:
    """Write a tiny random base with the values of a published config.json into `folder`.

    Raises UserError when transformers cannot build a model from them.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        published = complete_config(values)
        tiny = tiny_values(published.to_dict(), window)
        config = type(published).from_dict(tiny)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            _randomize(model)
    # The classes of transformers raise anything for sizes that do not fit each other.
    except Exception as error:
        raise UserError(f"a tiny copy of it cannot be built: {one_line(error)}") from error
    model.save_pretrained(str(folder))


def complete_config(values: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration that transformers makes of a config.json with these values.

    Raises what transformers raises for values that it cannot read.
    """
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory(prefix="loraforge-config-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(values))
        return AutoConfig.from_pretrained(folder, local_files_only=True)


def _randomize(model: PreTrainedModel) -> None:
    """Make every weight random, and none of them zero or neutral."""
    import torch

    tensors = dict(model.named_parameters())
    # Routers choose experts by buffers, too.
    tensors |= {name: buffer for name, buffer in model.named_buffers() if "correction" in name}
    with torch.no_grad():
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape)
            last = name.rsplit(".", 1)[-1]
            if "sink" in name:
                tensor.copy_(1 + noise)
            elif last in ("A_log", "dt_bias", "D", "recurrent_param") or "dt_proj.bias" in name:
                tensor.add_(0.1 * noise)  # a recurrence is stable near its initial values only
            elif tensor.ndim >= 2:
                tensor.copy_(0.15 * noise)
            else:
                tensor.add_(0.3 * noise)


def _layers_with_each_kind(per_layer: list[Any]) -> int:
    """The number of first layers among which is each kind of layer of the list."""
    kinds = {str(each) for each in per_layer}
    if len(kinds) > _MAX_KINDS:
        return 2
    return max([str(each) for each in per_layer].index(kind) for kind in kinds) + 1


def _size(key: str, value: Any) -> Any:
    is_size = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return _SIZES[key] if is_size and key in _SIZES else value


def _kv_heads(value: int, values: Mapping[str, Any]) -> int:
    """Key-value heads in the base's own form: one per head, one for all heads, or groups."""
    heads = next((values[key] for key in _HEADS if isinstance(values.get(key), int)), 0)
    return 4 if value == heads else min(value, 2)


def _rotation(
    rotation: Mapping[str, Any], values: Mapping[str, Any], window: int | None
) -> dict[str, Any]:
    if any(isinstance(each, dict) for each in rotation.values()):  # one per kind of layer
        return {
            kind: _rotation(each, values, window) if isinstance(each, dict) else each
            for kind, each in rotation.items()
        }
    tiny = dict(rotation)
    if window and tiny.get("rope_type") == "longrope":
        tiny["original_max_position_embeddings"] = window
    for key in ("short_factor", "long_factor"):
        if isinstance(tiny.get(key), list):
            size = int(_SIZES["head_dim"] * tiny.get("partial_rotary_factor", 1.0)) // 2
            tiny[key] = tiny[key][:size]
    return tiny
