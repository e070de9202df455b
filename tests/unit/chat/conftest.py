"""A small byte-level tokenizer that knows every family's control tokens, and renderers with each family's template; and
for the published families a tokenizer of the kind that each has.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

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
CORPUS = [
    "the answer is 42 and 2",
    "Hello, world\n\n",
    "user assistant system\n",
    "naïve café ☃ 東京",
    "it is 42",
] * 20


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def template_of(pocket_base: str) -> Callable[[str], str]:
    def read(family: str) -> str:
        if family == "pocket":
            return (Path(pocket_base) / "chat_template.jinja").read_text()
        if family == "alpaca":
            from pipelines.chat.default_templates import ALPACA_TEMPLATE

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
        return PreTrainedTokenizerFast(
            tokenizer_object=byte_level, chat_template=template_of(family), **NAMED
        )

    return make


# -- tokenizers as the published families have them -----------------------------------------------------------------

QWEN_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEXTS = [
    *CORPUS,
    "the tool_call think response [INST] <b>it</b>",
    "aten tine   in  net\n\n\nten",
    "[/INST] a teen: 4242",
]
QWEN_TEXT_TOKENS = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "<tool_response>",
    "</tool_response>",
]
R1_TEXT_TOKENS = [
    "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
]  # fmt: skip
MISTRAL_TOKENS = [
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
]
LLAMA_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


def bytes_of(
    words: str, special: list[str], plain: Sequence[str] = (), normalizer: Any = None
) -> Tokenizer:
    """Byte-level BPE that splits at `words`; `plain` are added tokens with special: false."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])
    return tokenizer


def pieces_of(
    special: list[str], plain: Sequence[str] = (), eats: Sequence[str] = (), **parts: Any
) -> Tokenizer:
    """BPE with byte fallback over words that begin with `▁`, as sentencepiece trains it; `eats` take what white space
    follows them. The normalizer or pre-tokenizer among `parts` is set after training.
    """
    training = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    training.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bytes_ = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    training.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=bytes_, show_progress=False)
    )
    data = json.loads(training.to_str())
    data["added_tokens"], data["pre_tokenizer"] = data["added_tokens"][:3], None
    tokenizer = Tokenizer.from_str(json.dumps(data))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    stripped = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), stripped]
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True, rstrip=t in eats) for t in special]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])
    return tokenizer


def prepended() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


PUBLISHED: dict[str, tuple[Callable[[], Tokenizer], dict[str, str]]] = {
    "llama31": (
        lambda: bytes_of(LLAMA_WORDS, LLAMA_TOKENS),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
    "qwen3": (
        lambda: bytes_of(
            QWEN_WORDS,
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            QWEN_TEXT_TOKENS,
            normalizers.NFC(),
        ),
        {"eos_token": "<|im_end|>"},
    ),
    "mistral_v3": (
        lambda: pieces_of(
            MISTRAL_TOKENS + ["[/TOOL_RESULTS]"],
            pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        ),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "gemma": (
        lambda: pieces_of(
            ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
            ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "<b>", "</b>"],
            normalizer=normalizers.Replace(" ", "▁"),
            pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
        ),
        {"bos_token": "<bos>", "eos_token": "<eos>"},
    ),
    "phi3": (
        lambda: pieces_of(
            ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|user|>", "<|end|>"],
            eats=["<|assistant|>", "<|system|>", "<|user|>", "<|end|>"],
            normalizer=prepended(),
        ),
        {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
    ),
    "phi4": (
        lambda: bytes_of(
            LLAMA_WORDS, ["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"]
        ),
        {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
    ),
    "deepseek_r1": (
        lambda: bytes_of(
            LLAMA_WORDS, ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"], R1_TEXT_TOKENS
        ),
        {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
    ),
    "zephyr": (
        lambda: pieces_of([], normalizer=prepended()),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "llama2": (
        lambda: pieces_of([], normalizer=prepended()),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
}


@pytest.fixture(scope="session")
def published(template_of) -> Callable[..., ChatRenderer]:
    """A renderer with the published template of a family and a tokenizer of its kind."""

    @functools.cache
    def make(family: str, fast: bool = False) -> ChatRenderer:
        build, named = PUBLISHED[family]
        return ChatRenderer(TokenizerSpec(build().to_str(), template_of(family), named), fast)

    return make


@pytest.fixture(scope="session")
def published_reference(published):
    """The transformers tokenizer of a published family."""
    from transformers import PreTrainedTokenizerFast

    @functools.cache
    def make(family: str):
        spec = published(family).spec
        backend = Tokenizer.from_str(spec.tokenizer_json)
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, chat_template=spec.template, **spec.named_tokens
        )

    return make


@pytest.fixture(scope="session")
def bytes_of_tokens() -> Callable[[ChatRenderer, Any], str]:
    """What tokens spell, one by one: no decoder drops a space or joins what lies apart."""
    return _bytes_of_tokens


def _bytes_of_tokens(renderer: ChatRenderer, ids: Any) -> str:
    tokenizer, added = renderer._encoder._tokenizer, renderer._encoder._data["added_tokens"]
    text_of = {token["id"]: token["content"] for token in added}
    byte_level = {character: bytes([byte]) for byte, character in _byte_characters().items()}
    spelled = b""
    for index in ids.tolist():
        token = tokenizer.id_to_token(index)
        assert token is not None
        if index in text_of:
            spelled += text_of[index].encode()
        elif re.fullmatch("<0x[0-9A-F]{2}>", token):
            spelled += bytes([int(token[3:5], 16)])
        elif "ByteLevel" in str(tokenizer.pre_tokenizer):
            spelled += b"".join(byte_level[character] for character in token)
        else:
            spelled += token.replace("▁", " ").encode()
    return spelled.decode()


def _byte_characters() -> dict[int, str]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {
        byte: chr(256 + i) for i, byte in enumerate(hidden)
    }
