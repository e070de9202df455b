"""Bases that were trained, merged, evaluated or served wrongly without a word are refused, before
Ray starts and without their weights, or computed as transformers and PEFT compute them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from typer.testing import CliRunner

import jobs.cluster.ray
from jobs.bases.checks import check_trains
from jobs.bases.trial import try_base
from jobs.cli import app
from pipelines.config.recipe import parse_recipe
from pipelines.config.schema import LoraConfig, ModelConfig
from pipelines.core.errors import UserError
from pipelines.model.base import load_base, meta_model
from pipelines.model.lora import attach, attention_targets, trainable_parameters
from pipelines.model.merge import merge_adapter
from pipelines.model.published import PublishedBase
from tests.small_bases import HEADS, config_only, small_base

pytestmark = pytest.mark.trials

RECIPE = str(Path(__file__).parents[2] / "recipes" / "pocket_lora_person_cpu.yaml")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command(verb: list[str], base: str, store: Path, *settings: str) -> str:
    """The line with which a command refuses a base; fails if it starts Ray."""
    arguments = [verb[0], RECIPE, *verb[1:], "--store", str(store), "-s", f"model.base={base}"]
    shown = CliRunner().invoke(app, [*arguments, *(x for each in settings for x in ("-s", each))])
    assert isinstance(shown.exception, UserError), shown.output
    assert "\n" not in str(shown.exception)
    return str(shown.exception)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(jobs.cluster.ray, "ray_cluster", started)


def recipe(base: str, **lora: Any) -> Any:
    return parse_recipe(
        {
            "name": "small",
            "model": {"base": base, "dtype": "fp32"},
            "data": {"sources": [{"path": "rows.jsonl"}], "row_tokens": 96},
            "lora": {"r": 4, **lora},
        }
    )


QUANTIZED = {
    "GPTQ, 4 bits": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "AWQ, 4 bits": {"quant_method": "awq", "bits": 4, "zero_point": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "HQQ": {"quant_method": "hqq", "quant_config": {}},
    "MXFP4": {"quant_method": "mxfp4"},
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}


@pytest.mark.parametrize("format_name", QUANTIZED)
def test_a_quantized_checkpoint_is_refused_before_ray(
    format_name: str, tmp_path: Path, no_ray: None
) -> None:
    base = config_only(tmp_path / "base", "llama", quantization_config=QUANTIZED[format_name])
    for verb in (["train", "--dry-run"], ["run"], ["evaluate"], ["serve"]):
        line = command(verb, base, tmp_path / "store")
        assert f"({format_name})" in line
        assert "set the base that it was quantized from" in line


def test_a_base_saved_in_4_bits_is_neither_loaded_nor_merged_into(tmp_path: Path) -> None:
    plain = small_base(tmp_path / "plain", "llama")
    quantized = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map={"": "cpu"}
    )
    quantized.save_pretrained(str(tmp_path / "quantized"))
    for quantization in ("none", "nf4"):
        config = ModelConfig.model_validate(
            {"base": str(tmp_path / "quantized"), "quantization": quantization}
        )
        for use in (load_base, meta_model, lambda c: merge_adapter(c, tmp_path, "cpu")):
            with pytest.raises(UserError, match="bitsandbytes, 4 bits"):
                use(config)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "gemma3", "text_config": {"sliding_window": 1024}, "vision_config": {}},
        {"model_type": "llama4", "text_config": {"attention_chunk_size": 8192}},
        {"model_type": "mistral3", "text_config": {"model_type": "mistral"}},
        {"model_type": "qwen2_5_vl", "vision_config": {"depth": 32}},
    ],
    ids=lambda values: values["model_type"],
)
def test_a_model_of_several_parts_is_refused_before_ray(
    values: dict[str, Any], tmp_path: Path, no_ray: None
) -> None:
    base = config_only(tmp_path / "base", **values)
    for verb in (["train", "--dry-run"], ["run"], ["serve"]):
        assert "choose a text-only base" in command(verb, base, tmp_path / "store")


NOT_LIKE_LLAMA = {
    "gpt2": "no model",
    "gpt_neox": "no model",
    "gptj": "an attention of its own",
    "gpt_neo": "an attention of its own",
    "bloom": "an attention of its own",
    "mpt": "an attention of its own",
    "falcon": "an attention of its own",
    "stablelm": "an attention of its own",
    "nemotron": "does not pass on",
}


@pytest.mark.parametrize("model_type", NOT_LIKE_LLAMA)
def test_a_base_that_is_not_called_as_llama_is_one_line(model_type: str, tmp_path: Path) -> None:
    values = HEADS if model_type in ("stablelm", "nemotron") else {}
    base = config_only(tmp_path / "base", model_type, **values)
    with pytest.raises(UserError, match=NOT_LIKE_LLAMA[model_type]) as refused:
        check_trains(recipe(base))
    assert base in str(refused.value) or "model.base" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_dry_run_and_the_run_refuse_it_before_ray(tmp_path: Path, no_ray: None) -> None:
    base = config_only(tmp_path / "base", "gpt2")
    (tmp_path / "base" / "model.safetensors").touch()
    for verb in (["train", "--dry-run"], ["run"]):
        assert "has no model" in command(verb, base, tmp_path / "store")


HYBRID = {
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_local_experts": 0},
    "jamba": {"mamba_d_state": 16, "attn_layer_period": 8},
    "falcon_h1": {"mamba_d_state": 128},
    "nemotron_h": {"ssm_state_size": 128},
    "recurrent_gemma": {"lru_width": 2560},
}


@pytest.mark.parametrize("model_type", HYBRID)
def test_layers_with_a_state_are_refused_before_ray(model_type: str, tmp_path: Path) -> None:
    base = config_only(tmp_path / "base", model_type, **HYBRID[model_type])
    with pytest.raises(UserError, match="samples of a pack would see each other"):
        check_trains(recipe(base))


@pytest.mark.parametrize("model_type", ["gpt_oss", "mimo_v2_flash"])
def test_sinks_are_refused_in_training_and_computed_elsewhere(model_type: str) -> None:
    """Evaluation and serving once refused such a base after it was trained."""
    base = PublishedBase("org/base", {"model_type": model_type, **HEADS})
    cells = try_base(base, columns=("loads", "packed", "merges", "evaluates", "served"))
    assert "attention sinks" in cells["packed"].reason
    assert {cells[column].verdict for column in ("loads", "merges", "evaluates", "served")} == {
        "yes"
    }


@pytest.mark.parametrize(
    ("model_type", "values", "reason"),
    [
        ("doge", {"keep_window_size": 2048}, "a mask of its own"),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling"),
        ("minicpm3", {"num_key_value_heads": 8}, "another loss than transformers"),
    ],
)
def test_another_computation_is_refused_by_the_proof_of_a_copy(
    model_type: str, values: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    base = config_only(tmp_path / "base", model_type, **{**HEADS, **values})
    with pytest.raises(UserError, match=reason):
        check_trains(recipe(base, targets=["o_proj"]))


LONGROPE = {
    "model_type": "phi3",
    **HEADS,
    "hidden_size": 768,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 64,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0] * 48,
        "long_factor": [8.0] * 48,
    },
}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (LONGROPE, "LongRoPE"),
        (
            {
                "model_type": "llama",
                **HEADS,
                "max_position_embeddings": 64,
                "rope_scaling": {"type": "dynamic", "factor": 2.0},
            },
            "dynamic RoPE",
        ),
        ({"model_type": "mistral", **HEADS, "sliding_window": 64}, "sliding_window"),
        ({"model_type": "llama4_text", "attention_chunk_size": 64}, "attention_chunk_size"),
    ],
    ids=["longrope", "dynamic", "window", "chunks"],
)
def test_samples_that_would_change_their_neighbours_or_lose_tokens_are_refused(
    values: dict[str, Any], key: str, tmp_path: Path, no_ray: None
) -> None:
    base = config_only(tmp_path / "base", **values)
    with pytest.raises(UserError, match="data.row_tokens=64 or less") as refused:
        check_trains(recipe(base, targets="attention"))
    assert key in str(refused.value)
    if key != "dynamic RoPE":  # the engine stops at the base's own positions before
        (tmp_path / "base" / "model.safetensors").touch()
        assert "serve.max_model_tokens=64 or less" in command(["serve"], base, tmp_path / "store")


def test_the_default_targets_on_experts_are_refused_and_the_recipe_stays_as_it_is(
    tmp_path: Path,
) -> None:
    base = small_base(tmp_path / "base", "qwen3_moe", num_experts=128)
    lora = LoraConfig(r=4)
    with pytest.raises(UserError, match="lora.targets=attention"):
        attach(load_base(ModelConfig(base=base), "cpu"), lora, 0)
    assert lora.rank_pattern == {}
    with pytest.raises(UserError, match="lora.targets=attention"):
        check_trains(recipe(base))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe", "glm4_moe", "deepseek_v3"])
def test_experts_stay_frozen_under_adapters_on_attention(model_type: str, tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", model_type)
    targets = attention_targets(meta_model(ModelConfig(base=base)))
    check_trains(recipe(base, targets=targets))
    model = attach(load_base(ModelConfig(base=base), "cpu"), LoraConfig(r=4, targets=targets), 0)
    assert all("attn" in name for name in trainable_parameters(model))


def test_an_adapter_on_a_router_is_refused(tmp_path: Path) -> None:
    base = load_base(ModelConfig(base=small_base(tmp_path / "base", "mixtral")), "cpu")
    with pytest.raises(UserError, match="q_proj"):
        attach(base, LoraConfig(r=4, targets=["q_proj", "gate"]), 0)


def test_experts_are_not_quantized_in_silence(tmp_path: Path) -> None:
    config = ModelConfig.model_validate(
        {"base": small_base(tmp_path / "base", "mixtral"), "quantization": "nf4"}
    )
    with pytest.raises(UserError, match="experts are none"):
        load_base(config, "cpu")


def test_weights_that_are_missing_or_not_used_are_refused(tmp_path: Path) -> None:
    """transformers draws missing weights at random and drops the scales of quantized ones."""
    file = tmp_path / "base" / "model.safetensors"
    base = ModelConfig(base=small_base(tmp_path / "base", "qwen2"))
    weights = load_file(str(file))
    scale = {"model.layers.0.self_attn.q_proj.weight_scale_inv": torch.ones(2, 2)}
    save_file(weights | scale, str(file), metadata={"format": "pt"})
    with pytest.raises(UserError, match="weight_scale_inv"):
        load_base(base, "cpu")
    biases = {name for name in weights if name.endswith("q_proj.bias")}
    kept = {name: tensor for name, tensor in weights.items() if name not in biases}
    save_file(kept, str(file), metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{len(biases)} of its weights .* would be random"):
        load_base(base, "cpu")


def test_weights_of_parts_that_are_not_loaded_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "base" / "model.safetensors"
    base = ModelConfig(base=small_base(tmp_path / "base", "qwen2"))
    parts = {
        "vision_tower.x.weight": torch.ones(2),
        "model.layers.9.mlp.up_proj.weight": torch.ones(2),
    }
    save_file(load_file(str(file)) | parts, str(file), metadata={"format": "pt"})
    load_base(base, "cpu")


@pytest.mark.parametrize(
    "model_type",
    ["gemma2", "opt", "persimmon", "youtu", "deepseek_v3"],
    ids=["eager mask", "flat inputs", "no key-value heads", "two head sizes", "experts"],
)
def test_a_batch_with_adapters_is_served_as_each_request_alone(model_type: str) -> None:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    base = PublishedBase("org/base", {"model_type": model_type, **heads})
    assert str(try_base(base, columns=("served",))["served"]) == "yes"


def test_answers_do_not_depend_on_the_longest_neighbour() -> None:
    """LongRoPE rotates a whole batch by its longest row: such batches are never computed."""
    cells = try_base(
        PublishedBase("org/base", LONGROPE), window=12, columns=("packed", "evaluates", "served")
    )
    assert "data.row_tokens=12 or less" in cells["packed"].reason
    assert "eval.max_new_tokens=12 or less" in cells["evaluates"].reason
    assert "serve.max_model_tokens=12 or less" in cells["served"].reason


def test_doctor_prints_the_row_of_a_base_and_exits_2_when_it_cannot_be_trained(
    tmp_path: Path,
) -> None:
    trainable = config_only(tmp_path / "llama", "llama", **HEADS)
    shown = CliRunner().invoke(app, ["doctor", trainable])
    assert shown.exit_code == 0, shown.output
    assert "trains packed" in shown.output
    assert "chat template" in shown.output
    quantized = config_only(
        tmp_path / "gptq", "llama", quantization_config=QUANTIZED["GPTQ, 4 bits"]
    )
    shown = CliRunner().invoke(app, ["doctor", quantized])
    assert shown.exit_code == 2
    assert "GPTQ, 4 bits" in shown.output


def test_a_configuration_is_read_as_json_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps([1]))
    assert "model_type" in command(["train", "--dry-run"], str(tmp_path), tmp_path / "store")
