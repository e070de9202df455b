"""Bases that load, or are refused while they load: what is loaded, trained, merged and served is
what transformers and PEFT compute.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from jobs.bases.checks import check_trains
from jobs.bases.trial import try_base
from pipelines.config.schema import LoraConfig, ModelConfig
from pipelines.core.errors import UserError
from pipelines.model.base import load_base, meta_model
from pipelines.model.lora import attach, attention_targets, trainable_parameters
from pipelines.model.merge import merge_adapter
from pipelines.model.published import PublishedBase
from tests.small_bases import HEADS, LONGROPE, recipe_of, small_base

pytestmark = [pytest.mark.trials, pytest.mark.usefixtures("one_thread")]


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


@pytest.mark.parametrize("model_type", ["gpt_oss", "mimo_v2_flash"])
def test_sinks_are_refused_in_training_and_computed_elsewhere(model_type: str) -> None:
    """Evaluation and serving once refused such a base after it was trained."""
    base = PublishedBase("org/base", {"model_type": model_type, **HEADS})
    cells = try_base(base, columns=("loads", "packed", "merges", "evaluates", "served"))
    assert "attention sinks" in cells["packed"].reason
    assert {cells[column].verdict for column in ("loads", "merges", "evaluates", "served")} == {
        "yes"
    }


def test_the_default_targets_on_experts_are_refused_and_the_recipe_stays_as_it_is(
    tmp_path: Path,
) -> None:
    base = small_base(tmp_path / "base", "qwen3_moe", num_experts=128)
    lora = LoraConfig(r=4)
    with pytest.raises(UserError, match="lora.targets=attention"):
        attach(load_base(ModelConfig(base=base), "cpu"), lora, 0)
    assert lora.rank_pattern == {}
    with pytest.raises(UserError, match="lora.targets=attention"):
        check_trains(recipe_of(base))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe", "glm4_moe", "deepseek_v3"])
def test_experts_stay_frozen_under_adapters_on_attention(model_type: str, tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", model_type)
    targets = attention_targets(meta_model(ModelConfig(base=base)))
    check_trains(recipe_of(base, targets=targets))
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
    rest = {name: tensor for name, tensor in weights.items() if name not in biases}
    save_file(rest, str(file), metadata={"format": "pt"})
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
