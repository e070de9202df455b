"""Adapters that the registry refuses: poisoned, damaged, or with files that do not belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.core.errors import UserError
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from tests.small_adapters import A_KEY, B_KEY, register, write_adapter

POISONED = {
    "nan": ({"tensors": {A_KEY: np.full((2, 6), np.nan, np.float32)}}, "not finite"),
    "inf": ({"tensors": {B_KEY: np.full((4, 2), np.inf, np.float32)}}, "not finite"),
    "untrained": ({"tensors": {B_KEY: np.zeros((4, 2), np.float32)}}, "every lora_B is zero"),
    "empty shard": ({"tensors": {B_KEY: np.zeros((0,), np.float32)}}, "shape"),
    "other rank": ({"r": 4}, "does not fit r=4"),
    "extra tensor": ({"tensors": {"lm_head.weight": np.ones((2, 2), np.float32)}}, "neither"),
    "no partner": ({"tensors": {"x.lora_A.weight": np.ones((2, 6), np.float32)}}, "no partner"),
    "integers": ({"tensors": {A_KEY: np.ones((2, 6), np.int32)}}, "dtype"),
    "alpha 1e6": ({"lora_alpha": 1e6}, "scales the adapter"),
    "alpha nan": ({"lora_alpha": float("nan")}, "lora_alpha"),
    "alpha text": ({"lora_alpha": "16"}, "lora_alpha"),
    "rank 0": ({"r": 0}, "r=0"),
    "rank true": ({"r": True}, "r=True"),
    "other method": ({"peft_type": "IA3"}, "IA3"),
    "dora": ({"use_dora": True}, "use_dora"),
    "full modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "rank pattern": ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
}


@pytest.mark.parametrize("case", POISONED)
def test_a_poisoned_adapter_is_refused_and_leaves_nothing_behind(
    registry: Registry, store: Store, tmp_path: Path, case: str
) -> None:
    changes, reason = POISONED[case]
    with pytest.raises(UserError, match=reason):
        register(registry, write_adapter(tmp_path / "a", **changes))
    assert registry.models() == [] and store.list("models") == []


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "modeling.py", "weights.pkl", "nested/x.json"]
)
def test_a_file_that_does_not_belong_to_an_adapter_is_refused(
    registry: Registry, tmp_path: Path, name: str
) -> None:
    adapter = write_adapter(tmp_path / "a")
    (adapter / name).parent.mkdir(exist_ok=True)
    (adapter / name).write_text("print('hello')")
    with pytest.raises(UserError, match=name.split("/")[0]):
        register(registry, adapter)


def test_links_and_broken_files_are_refused(registry: Registry, tmp_path: Path) -> None:
    linked = write_adapter(tmp_path / "linked")
    (tmp_path / "elsewhere").write_bytes((linked / "adapter_model.safetensors").read_bytes())
    (linked / "adapter_model.safetensors").unlink()
    (linked / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere")
    cut = write_adapter(tmp_path / "cut")
    weights = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(weights[:-4])
    text = write_adapter(tmp_path / "list")
    (text / "adapter_config.json").write_text("[]")
    for adapter, reason in (
        (linked, "plain files"),
        (cut, "safetensors"),
        (text, "LoRA configuration"),
    ):
        with pytest.raises(UserError, match=reason):
            register(registry, adapter)
    with pytest.raises(UserError, match="no adapter_config.json"):
        register(registry, tmp_path / "nowhere")
    with pytest.raises(UserError, match="fingerprint"):
        register(registry, write_adapter(tmp_path / "adapter"), base_fingerprint="")


def test_bfloat16_weights_are_checked_like_others(registry: Registry, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    adapter = write_adapter(tmp_path / "a")
    tensors = {
        A_KEY: torch.ones(2, 6, dtype=torch.bfloat16),
        B_KEY: torch.ones(4, 2, dtype=torch.bfloat16),
    }
    save_torch(tensors, str(adapter / "adapter_model.safetensors"))
    assert register(registry, adapter).name == "bot"
    for value, reason in (
        (float("nan"), "not finite"),
        (float("-inf"), "not finite"),
        (0.0, "zero"),
        (-0.0, "zero"),
    ):
        save_torch(
            tensors | {B_KEY: torch.full_like(tensors[B_KEY], value)},
            str(adapter / "adapter_model.safetensors"),
        )
        with pytest.raises(UserError, match=reason):
            register(registry, adapter)
