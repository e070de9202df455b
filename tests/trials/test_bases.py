"""Bases that were trained, merged, evaluated or served wrongly without a word are refused, before
Ray starts and without their weights, or computed as transformers and PEFT compute them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import jobs.cluster.ray
from jobs.bases.checks import check_trains
from jobs.cli import app
from pipelines.core.errors import UserError
from tests.small_bases import HEADS, LONGROPE, config_only, recipe_of

pytestmark = [pytest.mark.trials, pytest.mark.usefixtures("one_thread")]

RECIPE = str(Path(__file__).parents[2] / "recipes" / "pocket_lora_person_cpu.yaml")


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
        check_trains(recipe_of(base))
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
        check_trains(recipe_of(base))


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
        check_trains(recipe_of(base, targets=["o_proj"]))


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
        check_trains(recipe_of(base, targets="attention"))
    assert key in str(refused.value)
    if key != "dynamic RoPE":  # the engine stops at the base's own positions before
        (tmp_path / "base" / "model.safetensors").touch()
        assert "serve.max_model_tokens=64 or less" in command(["serve"], base, tmp_path / "store")


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
