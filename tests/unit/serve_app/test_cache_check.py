"""A model that computes other numbers with the slot cache than alone is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.config.schema import ModelConfig
from pipelines.core.errors import UserError
from pipelines.model.base import load_base
from serve_app.engines.transformers.batch_forward import pad_prompts
from serve_app.engines.transformers.cache_check import check_cache
from serve_app.engines.transformers.slots import SlotCache
from tests.small_bases import small_base


def loaded(folder: Path, model_type: str):
    return load_base(ModelConfig(base=small_base(folder, model_type), dtype="fp32"), "cpu")


@pytest.mark.parametrize("model_type", ["llama", "gpt_oss"], ids=["sdpa", "eager"])
@pytest.mark.parametrize("slots", [1, 4])
def test_a_model_with_attention_passes_and_leaves_no_trace(
    model_type: str, slots: int, tmp_path: Path
) -> None:
    model, cache = loaded(tmp_path, model_type), SlotCache(slots, 32)
    check_cache(model, cache)
    assert not any(tensor.any() for pair in cache._kv.values() for tensor in pair)


@pytest.mark.parametrize("quantization", ["int8", "nf4", "fp8"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rounding_is_no_wrong_cache(quantization: str, dtype: str, tmp_path: Path) -> None:
    base = small_base(tmp_path, "qwen3")
    config = {"base": base, "dtype": dtype, "quantization": quantization}
    check_cache(load_base(ModelConfig.model_validate(config), "cpu"), SlotCache(4, 32))


def test_a_model_with_positions_by_the_length_of_the_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bloom.* cannot be served"):
        check_cache(loaded(tmp_path, "bloom"), SlotCache(4, 32))


def test_a_mask_that_hides_nothing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = SlotCache.begin

    def unmasked(self: SlotCache, first_row: int, positions: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(begin(self, first_row, positions))

    monkeypatch.setattr(SlotCache, "begin", unmasked)
    with pytest.raises(UserError, match="standard deviations"):
        check_cache(loaded(tmp_path, "llama"), SlotCache(4, 32))


def test_rows_that_are_too_short_for_the_check_are_not_checked(tmp_path: Path) -> None:
    check_cache(loaded(tmp_path, "bloom"), SlotCache(4, 7))


def test_padding_has_the_positions_behind_the_prompt() -> None:
    ids, positions = pad_prompts([[7, 8, 9], [5]])
    assert ids == [[7, 8, 9], [0, 0, 5]]
    assert positions == [[0, 1, 2], [1, 2, 0]]
