"""The limits of a recipe's adapter are those of adapter files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.adapter_format.adapter_check import check_adapter
from pipelines.adapter_format.limits import REGISTRY_MAX_RANK, REGISTRY_MAX_SCALE
from pipelines.core.errors import UserError


@pytest.mark.parametrize(
    ("r", "alpha", "taken"), [(1024, 8, True), (1025, 8, False), (1, 256, True), (1, 256.5, False)]
)
def test_a_recipe_is_judged_by_the_limits_of_adapter_files(
    r: int, alpha: float, taken: bool, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": r, "lora_alpha": alpha})
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError) as error:
        check_adapter(tmp_path)
    assert ("not a complete safetensors file" in str(error.value)) == taken
    assert taken == (r <= REGISTRY_MAX_RANK and alpha / r <= REGISTRY_MAX_SCALE)
