"""Small tokenizers of the kinds that published bases have, trained here, and what tokens spell."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
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

from pipelines.chat import ChatRenderer

# How Qwen splits words: digits one by one; Llama-3 takes up to three together.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEXTS = [
    "the answer is 42 and 2",
    "Hello, world\n\n",
    "user assistant system\n",
    "naïve café ☃ 東京",
    "it is 42",
] * 20 + [
    "the tool_call think response [INST] <b>it</b>",
    "aten tine   in  net\n\n\nten",
    "[/INST] a teen: 4242",
]


def byte_level_bpe(
    words: str, special: Sequence[str], ordinary: Sequence[str] = (), normalizer: Any = None
) -> Tokenizer:
    """Byte-level BPE that splits at `words`; the added tokens `ordinary` have special: false."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    _add(tokenizer, special, ordinary)
    return tokenizer


def sentencepiece_bpe(
    special: Sequence[str] = (),
    ordinary: Sequence[str] = (),
    strips: Sequence[str] = (),
    **parts: Any,
) -> Tokenizer:
    """BPE with byte fallback over words that begin with `▁`, as sentencepiece trains it.

    `strips`: special tokens that absorb the white space after them. `parts`: normalizer and
    pre-tokenizer, set after training.
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
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    _add(tokenizer, special, ordinary, strips)
    return tokenizer


def space_before_each_stretch() -> normalizers.Normalizer:
    """Llama-2's normalizer: a space is set before every text between special tokens."""
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _add(
    tokenizer: Tokenizer,
    special: Sequence[str],
    ordinary: Sequence[str],
    strips: Sequence[str] = (),
) -> None:
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True, rstrip=t in strips) for t in special]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ordinary])


@functools.cache
def _tokenizer(tokenizer_json: str) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json)


def spell(renderer: ChatRenderer, ids: np.ndarray) -> str:
    """What tokens spell, one by one: no decoder drops a space or joins separate tokens."""
    tokenizer = _tokenizer(renderer.spec.tokenizer_json)
    added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    byte_level = {character: bytes([byte]) for byte, character in _byte_characters().items()}
    spelled = b""
    for index in ids.tolist():
        token = tokenizer.id_to_token(index)
        assert token is not None
        if index in added:
            spelled += added[index].encode()
        elif re.fullmatch("<0x[0-9A-F]{2}>", token):
            spelled += bytes([int(token[3:5], 16)])
        elif "ByteLevel" in str(tokenizer.pre_tokenizer):
            spelled += b"".join(byte_level[character] for character in token)
        else:
            spelled += token.replace("▁", " ").encode()
    return spelled.decode()


def count_token(renderer: ChatRenderer, ids: np.ndarray, token: str) -> int:
    return int(np.sum(ids == _tokenizer(renderer.spec.tokenizer_json).token_to_id(token)))


def _byte_characters() -> dict[int, str]:
    """The character that byte-level vocabularies write for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {
        byte: chr(256 + i) for i, byte in enumerate(hidden)
    }
