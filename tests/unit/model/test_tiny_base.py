"""A tiny copy keeps every value of a configuration that is not a size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines.core.errors import UserError
from pipelines.model.tiny_base import complete_config, save_tiny_base, tiny_values

QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "full_attention_interval": 4,
    "partial_rotary_factor": 0.25,
}


def test_values_that_are_not_sizes_stay() -> None:
    values = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0},
        "hidden_act": "silu",
    }
    tiny = tiny_values(values)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    assert tiny == values | sizes | {"num_key_value_heads": 2}


@pytest.mark.parametrize(("published", "tiny"), [(32, 4), (8, 2), (1, 1)])
def test_key_value_heads_keep_their_kind(published: int, tiny: int) -> None:
    values = {"num_attention_heads": 32, "num_key_value_heads": published}
    assert tiny_values(values)["num_key_value_heads"] == tiny


def test_a_copy_has_a_layer_of_each_kind() -> None:
    tiny = tiny_values(complete_config(QWEN3_NEXT).to_dict())
    assert tiny["layer_types"] == [*["linear_attention"] * 3, "full_attention"]
    assert tiny["num_hidden_layers"] == 4


def test_windows_are_shorter_or_longer_than_the_samples_as_asked() -> None:
    values = complete_config({"model_type": "gpt_oss"}).to_dict()
    assert tiny_values(values, window=12)["sliding_window"] == 12
    assert tiny_values(values)["sliding_window"] == 512
    assert tiny_values(values | {"sliding_window": None}, window=12)["sliding_window"] is None


def test_no_weight_is_zero_or_neutral(tmp_path: Path) -> None:
    save_tiny_base({"model_type": "gpt_oss"}, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path))
    names = [name for name, _ in model.named_parameters()]
    assert {"sinks", "bias", "gate_up_proj"} <= {name.rsplit(".", 1)[-1] for name in names}
    for name, parameter in model.named_parameters():
        assert parameter.std() > 0.01, name
        assert (parameter != 0).all(), name


def test_two_copies_are_equal_and_draw_no_random_number_of_the_process(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name in ("a", "b"):
        save_tiny_base({"model_type": "qwen3", "num_key_value_heads": 8}, tmp_path / name)
    assert torch.equal(state, torch.get_rng_state())
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_an_architecture_that_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a tiny copy of it cannot be built"):
        save_tiny_base({"model_type": "no_such_model"}, tmp_path)
