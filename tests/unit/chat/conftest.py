"""A small byte-level tokenizer that knows every family's control tokens, and renderers with each family's template."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pipelines.chat import ChatRenderer, TokenizerSpec

TEMPLATES = Path(__file__).parent / "templates"
CONTROL_TOKENS = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
]
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = ["the answer is 42 and 2", "Hello, world\n\n", "user assistant system\n", "naïve café ☃ 東京", "it is 42"] * 20


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(CONTROL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def template_of(pocket_base: str) -> Callable[[str], str]:
    def read(family: str) -> str:
        if family == "pocket":
            return (Path(pocket_base) / "chat_template.jinja").read_text()
        if family == "alpaca":
            from pipelines.chat.formats import ALPACA_TEMPLATE

            return ALPACA_TEMPLATE
        return (TEMPLATES / f"{family}.jinja").read_text()

    return read


@pytest.fixture(scope="session")
def renderer_of(byte_level, template_of) -> Callable[..., ChatRenderer]:
    @functools.cache
    def make(family: str, fast: bool = False) -> ChatRenderer:
        return ChatRenderer(TokenizerSpec(byte_level.to_str(), template_of(family), NAMED), fast)

    return make


@pytest.fixture(scope="session")
def reference_of(byte_level, template_of):
    """The transformers tokenizer of a family."""
    from transformers import PreTrainedTokenizerFast

    @functools.cache
    def make(family: str):
        return PreTrainedTokenizerFast(tokenizer_object=byte_level, chat_template=template_of(family), **NAMED)

    return make
