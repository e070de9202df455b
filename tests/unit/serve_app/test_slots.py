"""The architectures that the slot cache supports."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import Gemma2Config, LlamaConfig, MistralConfig, PretrainedConfig, Qwen3Config

from pipelines.core.errors import UserError
from serve_app.engines.transformers.slots import check_architecture


@pytest.mark.parametrize(
    ("config", "max_tokens"),
    [
        (LlamaConfig(), 8192),
        (Qwen3Config(), 8192),
        (MistralConfig(sliding_window=None), 8192),
        (Gemma2Config(), 4096),
    ],
    ids=str,
)
def test_models_with_full_attention_are_supported(
    config: PretrainedConfig, max_tokens: int
) -> None:
    check_architecture(config, max_tokens)


@pytest.mark.parametrize("config", [MistralConfig(), Gemma2Config()], ids=["mistral", "gemma2"])
def test_rows_longer_than_the_sliding_window_are_refused_with_its_size(
    config: PretrainedConfig,
) -> None:
    with pytest.raises(UserError, match="serve.max_model_tokens to at most its window of 4096"):
        check_architecture(config, 4097)


def test_a_model_with_linear_attention_is_refused() -> None:
    config = SimpleNamespace(
        layer_types=["linear_attention", "full_attention"], sliding_window=None
    )
    with pytest.raises(UserError, match="linear_attention"):
        check_architecture(config, 16)
