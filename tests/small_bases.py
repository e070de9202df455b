"""Tiny random bases of any architecture for tests, with the pocket base's tokenizer if wanted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.config.shipped import pocket_dir
from pipelines.model.tiny_base import save_tiny_base

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}
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


def small_base(folder: Path, model_type: str, window: int | None = None, **values: Any) -> str:
    """Write a tiny random base of an architecture into `folder`; returns the folder's name."""
    save_tiny_base({"model_type": model_type, **HEADS, **values}, folder, window)
    return str(folder)


def config_only(folder: Path, model_type: str, **values: Any) -> str:
    """Write a base without weights: a published config.json and the pocket base's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **values}))
    for pattern in ("tokenizer*", "*.jinja"):
        for file in (pocket_dir() / "model").glob(pattern):
            shutil.copy(file, folder)
    return str(folder)


def recipe_of(base: str, **lora: Any) -> Recipe:
    """A recipe that trains an adapter as in `lora` on `base`, in packs of 96 tokens."""
    return parse_recipe(
        {
            "name": "small",
            "model": {"base": base, "dtype": "fp32"},
            "data": {"sources": [{"path": "rows.jsonl"}], "row_tokens": 96},
            "lora": {"r": 4, **lora},
        }
    )
