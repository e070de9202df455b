"""The reader of PEFT's two files agrees with PEFT and safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.adapter_format.keys import KEY_PREFIX, file_key, pair_keys, parse_key
from pipelines.adapter_format.peft_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterFormatError,
    read_arrays,
    read_config,
    read_tensors,
)
from pipelines.adapter_format.scale import lora_scale

Q_PROJ = f"{KEY_PREFIX}model.layers.0.self_attn.q_proj"


def write(folder: Path, **fields: Any) -> Path:
    text = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **fields})
    (folder / CONFIG_FILE).write_text(text)
    return folder


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_scales_of_modules_are_those_of_peft(tmp_path: Path, rslora: bool) -> None:
    """Plain names, positions and regular expressions, of which the first match counts."""
    import peft

    patterns: dict[str, Any] = {
        "rank_pattern": {"down": 2, r"[01]\.up": 8},
        "alpha_pattern": {r".*up": 3, "0.down": 5, "down": 7},
    }
    layers = [torch.nn.ModuleDict({n: torch.nn.Linear(16, 16) for n in ("up", "down", "out")})]
    model = torch.nn.ModuleList([*layers, torch.nn.ModuleDict({"down": torch.nn.Linear(16, 16)})])
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, use_rslora=rslora, target_modules=["up", "down", "out"], **patterns
    )
    adapted: Any = peft.get_peft_model(model, settings)  # type: ignore[arg-type]
    config = read_config(write(tmp_path, use_rslora=rslora, **patterns))
    modules = {
        name: module
        for name, module in adapted.get_base_model().named_modules()
        if hasattr(module, "lora_A")
    }
    assert len(modules) == 4
    for name, module in modules.items():
        assert config.rank_of(name) == module.r["default"], name
        assert config.scale_of(name) == module.scaling["default"], name
    assert config.beyond_plain_lora == ("rank_pattern", "alpha_pattern")
    assert config.scale == lora_scale(8, 4, rslora) == (4.0 if rslora else 2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_arrays_without_torch_equal_the_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {f"{Q_PROJ}.lora_A.weight": torch.randn(4, 6).to(dtype)}
    save_file(tensors, str(tmp_path / WEIGHTS_FILE))
    arrays, read = read_arrays(tmp_path), read_tensors(tmp_path)
    for key, tensor in tensors.items():
        assert torch.equal(read[key], tensor)
        np.testing.assert_array_equal(arrays[key], tensor.double().numpy())


def test_keys_name_the_module_and_the_side() -> None:
    key = file_key(f"{Q_PROJ}.lora_A.default.weight")
    assert key == f"{Q_PROJ}.lora_A.weight"
    assert parse_key(key) == ("model.layers.0.self_attn.q_proj", "A")
    assert parse_key(file_key(f"{Q_PROJ}.lora_magnitude_vector.default.weight")) is None
    pairs = pair_keys([f"{Q_PROJ}.lora_B.weight", key])
    assert pairs == {"model.layers.0.self_attn.q_proj": (key, f"{Q_PROJ}.lora_B.weight")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 0}, "r=0"),
        ({"lora_alpha": -1}, "lora_alpha=-1"),
        ({"rank_pattern": {"q_proj": 0}}, "q_proj=0"),
        ({"alpha_pattern": {"q_proj": "8"}}, "q_proj='8'"),
        ({"rank_pattern": ["q_proj"]}, "not a LoRA configuration"),
    ],
)
def test_a_configuration_without_usable_rank_or_scale_is_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterFormatError, match=message):
        read_config(write(tmp_path, **fields))
