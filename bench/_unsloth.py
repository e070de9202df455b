"""Unsloth's 8B with LoRA for `bench._trl`, for environments where Unsloth is installed.

Unsloth needs other versions of TRL and datasets than this project. Its loader gets the random
weights of every other arm, created on the GPU instead of read from a file. Its layers get torch's
variable-length flash attention if the package flash_attn, their first choice, is missing.
"""

from __future__ import annotations

import importlib
from typing import Any

from bench._shapes import config_of, random_model


def unsloth_model(tokenizer: Any, folder: str, recompute: Any) -> Any:
    """The model with adapters of rank 16 on all linears.

    `recompute` is Unsloth's use_gradient_checkpointing. The configuration and the tokenizer are
    written to `folder`.
    """
    import torch

    unsloth: Any = importlib.import_module("unsloth")
    llama: Any = importlib.import_module("unsloth.models.llama")
    config = config_of("8b", "sdpa")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    class RandomModel:
        @staticmethod
        def from_pretrained(*_: Any, attn_implementation: str = "sdpa", **__: Any) -> Any:
            return random_model(
                "8b", attn_implementation, "none", torch.device("cuda"), torch.bfloat16
            )

    llama.AutoModelForCausalLM = RandomModel
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        folder,
        max_seq_length=4096,
        dtype=torch.bfloat16,
        load_in_4bit=False,
        use_gradient_checkpointing=recompute,
    )
    _give_flash_attention()
    return unsloth.FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0, bias="none",
        use_gradient_checkpointing=recompute,
        target_modules=[
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        ],
    )  # fmt: skip


def _give_flash_attention() -> None:
    """Give Unsloth's dispatcher a flash_attn_varlen_func on torch's operator, if it has none."""
    dispatch: Any = importlib.import_module("unsloth.utils.attention_dispatch")
    if dispatch.HAS_FLASH_ATTENTION:
        return
    import torch

    from pipelines.layers.attention import packed_attention
    from pipelines.layers.bounds import SampleBounds

    def varlen(
        query: Any, key: Any, value: Any, starts: Any, _: Any, longest: int, *__: Any, **given: Any
    ) -> Any:
        bounds = SampleBounds(starts, int(longest), starts)
        rows = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
        scale = given.get("softmax_scale")
        return packed_attention(
            torch.nn.Module(), rows[0], rows[1], rows[2], None, scale, bounds=bounds
        )[0][0]

    dispatch.flash_attn_varlen_func = varlen
    dispatch.HAS_FLASH_ATTENTION = True
