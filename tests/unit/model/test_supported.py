"""Bases that would be trained, merged or served wrongly are refused from their configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from pipelines.config.schema import LoraConfig, ModelConfig
from pipelines.core.errors import UserError
from pipelines.model.base import load_base, meta_model
from pipelines.model.published import PublishedBase, read_published
from pipelines.model.supported import (
    adapter_refusal,
    check_base,
    load_refusal,
    published_values,
    serve_refusal,
    train_refusal,
)

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}


def base(**values: Any) -> PublishedBase:
    return PublishedBase("org/base", {"model_type": "llama", **values})


@pytest.mark.parametrize(
    ("settings", "format_name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ, 4 bits"),
        ({"quant_method": "awq", "bits": 4, "zero_point": True}, "AWQ, 4 bits"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "hqq", "quant_config": {}}, "HQQ"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": []}, "MXFP4"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
            "bitsandbytes, 4 bits",
        ),
        ({"load_in_4bit": False, "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"group_size": 64, "bits": 4}, "MLX, 4 bits"),
        ({"quant_method": "quark"}, "quark"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "quantization"])
def test_a_quantized_checkpoint_is_refused_with_its_format(
    settings: dict[str, Any], format_name: str, key: str
) -> None:
    quantized = base(**{key: settings})
    assert quantized.quantization == format_name
    assert f"({format_name})" in load_refusal(quantized)
    assert "model.quantization=nf4" in load_refusal(quantized)


@pytest.mark.parametrize(
    ("file", "format_name"),
    [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")],
)
def test_a_quantization_that_only_a_file_names_is_refused(file: str, format_name: str) -> None:
    quantized = PublishedBase("org/base", {"model_type": "llama"}, frozenset({file}))
    assert quantized.quantization == format_name


def test_an_unquantized_checkpoint_is_no_quantized_one() -> None:
    assert not base(quantization_config=None, torch_dtype="bfloat16").quantization
    assert base(torch_dtype="float8_e4m3fn").quantization == "float8"


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "gemma3", "text_config": {"sliding_window": 1024}, "vision_config": {}},
        {"model_type": "llama4", "text_config": {"attention_chunk_size": 8192}},
        {"model_type": "qwen2_5_vl", "hidden_size": 8, "vision_config": {"depth": 32}},
        {"model_type": "internvl", "llm_config": {"hidden_size": 8}},
        {"model_type": "qwen3_omni", "thinker_config": {"hidden_size": 8}},
    ],
    ids=lambda values: values["model_type"],
)
def test_a_model_of_several_parts_is_refused(values: dict[str, Any]) -> None:
    assert "choose a text-only base" in load_refusal(PublishedBase("org/base", values))


def test_parts_that_are_sections_of_one_decoder_are_no_parts() -> None:
    assert not base(attn_config={"clip_qkv": 8}, ffn_config={"ffn_hidden_size": 8}).nested


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"layer_types": ["conv", "full_attention"]}, "conv"),
        ({"layer_types": ["mamba", "attention"]}, "mamba"),
        ({"block_types": ["recurrent", "attention"]}, "recurrent"),
        ({"mamba_d_state": 16, "attn_layer_period": 8}, "mamba"),
        ({"ssm_state_size": 128, "hybrid_override_pattern": "M-M*"}, "mamba"),
        ({"linear_num_key_heads": 16, "full_attention_interval": 4}, "linear attention"),
        ({"conv_L_cache": 3, "full_attn_idxs": [2]}, "conv"),
    ],
    ids=str,
)
def test_recurrent_layers_are_refused_in_training_and_serving(
    values: dict[str, Any], kind: str
) -> None:
    recurrent = base(**values)
    assert recurrent.recurrent_layers == kind
    assert f"({kind})" in train_refusal(recurrent)
    assert f"({kind})" in serve_refusal(recurrent)


def test_sizes_of_recurrent_layers_that_a_base_does_not_have_do_not_matter() -> None:
    micro = base(layer_types=["attention"] * 4, mamba_d_state=128, num_local_experts=0)
    assert not micro.recurrent_layers
    assert not micro.num_experts


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ({"sliding_window": 64}, 64),
        ({"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}, 64),
        ({"attention_chunk_size": 64}, 64),
        ({"keep_window_size": 64}, 64),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 64}, 64),
        ({"rope_scaling": {"rope_type": "dynamic"}, "max_position_embeddings": 64}, 64),
        (
            {
                "rope_parameters": {
                    "full_attention": {
                        "rope_type": "longrope",
                        "original_max_position_embeddings": 64,
                    }
                }
            },
            64,
        ),
    ],
    ids=str,
)
def test_samples_that_cross_a_window_or_change_the_rotation_are_refused(
    values: dict[str, Any], limit: int
) -> None:
    windowed = base(**values)
    assert f"data.row_tokens={limit} or less" in train_refusal(windowed, limit + 1)
    assert f"serve.max_model_tokens={limit} or less" in serve_refusal(windowed, limit + 1)
    assert not train_refusal(windowed, limit)
    assert not serve_refusal(windowed, limit)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(),
        Qwen3Config(),
        Qwen2Config(use_sliding_window=False, sliding_window=64),
        MistralConfig(sliding_window=None),
        LlamaConfig(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}),
    ],
    ids=lambda config: type(config).__name__,
)
def test_bases_without_a_window_have_no_limit(config: PretrainedConfig) -> None:
    complete = published_values(config)
    assert not train_refusal(complete, 10**6)
    assert not serve_refusal(complete, 10**6)


def test_the_window_of_a_class_counts_too() -> None:
    complete = published_values(Gemma2Config())
    assert "sliding_window" in serve_refusal(complete, 4097)
    assert "final_logit_softcapping" in train_refusal(complete, 128)


@pytest.mark.parametrize(
    "values",
    [
        {"num_experts": 128},
        {"num_local_experts": 8},
        {"n_routed_experts": 256},
        {"moe_num_experts": [64, 64]},
        {"ffn_config": {"moe_num_experts": 16}},
    ],
    ids=str,
)
def test_experts_allow_adapters_on_attention_only(values: dict[str, Any]) -> None:
    sparse = base(**values)
    assert "lora.targets=attention" in adapter_refusal(sparse, LoraConfig())
    assert "train.method=lora" in adapter_refusal(sparse, LoraConfig(targets="qv"), "full")
    assert not adapter_refusal(sparse, LoraConfig(targets="attention"))


@pytest.mark.parametrize(
    "values", [{"num_experts": 1}, {"num_experts": 64, "is_moe": False}, {"num_experts": None}]
)
def test_a_dense_base_may_name_experts(values: dict[str, Any]) -> None:
    assert not adapter_refusal(base(**values), LoraConfig())


@pytest.mark.parametrize(
    "values",
    [
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["BertForMaskedLM"]},
        {"architectures": ["InternLM2ForRewardModel"]},
        {"model_type": "t5", "is_encoder_decoder": True},
    ],
    ids=str,
)
def test_a_model_that_does_not_continue_texts_is_refused(values: dict[str, Any]) -> None:
    assert "not a causal language model" in load_refusal(base(**values))
    for name in ("LlamaForCausalLM", "GPT2LMHeadModel", "ChatGLMModel"):
        assert not load_refusal(base(architectures=[name]))


def test_a_folder_with_an_adapter_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "it is an adapter" in load_refusal(read_published(tmp_path, "org/base"))


@pytest.mark.parametrize("text", ["[]", "{}", '{"hidden_size": 8}'])
def test_a_configuration_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="model_type"):
        read_published(tmp_path, "org/base")


def test_an_architecture_that_transformers_does_not_know_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "some_later_model"}))
    for load in (meta_model, load_base):
        with pytest.raises(UserError, match="cannot read its configuration") as refused:
            load(ModelConfig(base=str(tmp_path)))
        assert "some_later_model" in str(refused.value)


def test_a_value_of_the_wrong_type_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"hidden_size": "x"}))
    with pytest.raises(UserError, match="hidden_size"):
        meta_model(ModelConfig(base=str(tmp_path)))


def test_attention_dropout_of_the_base_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LlamaConfig(num_hidden_layers=1, hidden_size=64, attention_dropout=0.1).save_pretrained(
        str(tmp_path)
    )
    check_base(meta_model(ModelConfig(base=str(tmp_path))), 128)
    assert "attention_dropout=0.1" in caplog.text
