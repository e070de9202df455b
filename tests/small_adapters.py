"""Small LoRA adapters for tests of the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pipelines.core.artifacts import ModelVersion
from pipelines.registry.registry import Registry

_LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
A_KEY, B_KEY = f"{_LAYER}.lora_A.weight", f"{_LAYER}.lora_B.weight"


def write_adapter(
    folder: Path, seed: int = 0, tensors: dict[str, Any] | None = None, **config: Any
) -> Path:
    """Write a LoRA adapter of r=2 on one 4x6 linear; `tensors` and `config` replace parts of it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        A_KEY: rng.normal(size=(2, 6)).astype(np.float32),
        B_KEY: rng.normal(size=(4, 2)).astype(np.float32),
    }
    save_file(arrays | (tensors or {}), str(folder / "adapter_model.safetensors"))
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def register(registry: Registry, adapter: Path, model: str = "bot", **fields: Any) -> ModelVersion:
    """Register an adapter with made-up provenance, which `fields` replace."""
    defaults: dict[str, Any] = {
        "base": "pocket",
        "base_fingerprint": "f" * 64,
        "lineage": {"prepared": "a" * 64},
        "metrics": {"heldout_loss": 0.5},
    }
    return registry.register(model, adapter, **(defaults | fields))
