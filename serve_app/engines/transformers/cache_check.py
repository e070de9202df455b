"""Check that a model computes with the slot cache what it computes without a cache.

Rows of a batch have their own positions and share one attention mask. A model that numbers its
tokens by the length of the cache, adds a bias by distance, or carries a state past attention
would answer from wrong numbers. Two short prompts show it before the first request is taken.
"""

from __future__ import annotations

from typing import Any

import torch

from pipelines.core.errors import UserError, one_line
from serve_app.engines.transformers.batch_forward import last_logits, pad_prompts
from serve_app.engines.transformers.slots import SlotCache

_BASE_ERRORS = (
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    RuntimeError,
    AssertionError,
)
"""Errors in which the code of an architecture ends that cannot use the cache."""

_LENGTHS = (7, 3)
_EXACT, _ROUNDED = 1e-3, 0.25
"""Largest difference of logits, in their standard deviations, in fp32 and where products are
rounded to fewer bits.
"""


@torch.inference_mode()
def check_cache(model: Any, cache: SlotCache) -> None:
    """Prefill and continue two prompts in the cache, and compare with each prompt alone.

    Raises UserError when the numbers differ or the model's code cannot use the cache. Does nothing
    where rows are too short for it.
    """
    if cache.max_tokens <= max(_LENGTHS):
        return
    try:
        differences = _differences(model, cache)
    except torch.OutOfMemoryError:
        raise
    except _BASE_ERRORS as error:
        raise UserError(
            f"{_name(model)} cannot be served: with the engine's cache its code raises "
            f"{type(error).__name__} ({one_line(error, 200)}): choose a base of another "
            "architecture (docs/bases.md lists them)"
        ) from error
    # LLM.int8 rounds a row in another way when another row of the batch has an outlier.
    is_exact = model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    limit = _EXACT if is_exact else _ROUNDED
    if not max(differences) <= limit:
        raise UserError(
            f"{_name(model)} cannot be served: in a batch its logits differ from those of a "
            f"prompt alone by {max(differences):.2g} standard deviations, and rounding explains "
            f"{limit:g}: choose a base of another architecture (docs/bases.md lists them)"
        )


def _differences(model: Any, cache: SlotCache) -> list[float]:
    lengths = _LENGTHS[: cache.num_slots]
    size = model.get_input_embeddings().weight.shape[0]
    # Ids from all over the vocabulary; the last of each prompt comes in a step of its own.
    prompts = [[(31 * i + 17 * n + 11) % size for i in range(n + 1)] for n in lengths]
    prefilled = last_logits(model, cache, *pad_prompts([prompt[:-1] for prompt in prompts]))
    continued = last_logits(
        model, cache, [prompt[-1:] for prompt in prompts], [[n] for n in lengths]
    )
    for slot in range(len(lengths)):
        cache.wipe(slot)
    differences = []
    for row, prompt in enumerate(prompts):
        alone = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False)
        expected = alone.logits[0, -2:].float()
        actual = torch.stack([prefilled[row], continued[row]])
        differences.append(float((actual - expected).abs().mean() / expected.std()))
    return differences


def _name(model: Any) -> str:
    return f"model.base={model.config.name_or_path} ({model.config.model_type})"
