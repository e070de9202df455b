"""The template families that the tests cover, each with a tokenizer of its kind, and random
conversations for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from pipelines.core.conversation import Conversation, Turn
from tests.unit.chat.tokenizer_kinds import (
    LLAMA_WORDS,
    QWEN_WORDS,
    byte_level_bpe,
    sentencepiece_bpe,
    space_before_each_stretch,
)

# Special tokens of the families that share one byte-level tokenizer.
_SHARED_TOKENS = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|end|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
]  # fmt: skip
_LLAMA_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>",
]  # fmt: skip
_QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_QWEN_ORDINARY = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "</tool_response>",
]  # fmt: skip
_MISTRAL_TOKENS = [
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
]  # fmt: skip
_GEMMA_TOKENS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
_PHI3_TURNS = ["<|assistant|>", "<|system|>", "<|user|>", "<|end|>"]
_PHI4_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"]
_R1_TOKENS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
_R1_ORDINARY = [
    "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
]  # fmt: skip


def shared_tokenizer() -> Tokenizer:
    return byte_level_bpe(LLAMA_WORDS, _SHARED_TOKENS)


@dataclass(frozen=True)
class Family:
    """How a family's template writes an answer (`write`, then `stop`), and its tokenizer.

    `system`: takes system turns. `assistant_first`: an assistant may open. `adds_space`: the
    tokenizer sets spaces that the text does not have. `fast`: fastokens can load it.
    `writes_calls`: the template writes tool calls itself. `prompt_is_prefix`: a conversation begins
    with its generation prompt.
    """

    stop: str
    write: Callable[[str], str] = str
    system: bool = True
    assistant_first: bool = False
    tokenizer: Callable[[], Tokenizer] = shared_tokenizer
    bos: str | None = "<s>"
    eos: str = "</s>"
    adds_space: bool = False
    fast: bool = True
    writes_calls: bool = False
    prompt_is_prefix: bool = True

    @property
    def named_tokens(self) -> dict[str, str]:
        return {"eos_token": self.eos} | ({"bos_token": self.bos} if self.bos else {})

    def answer_pattern(self, content: str) -> str:
        """What the tokens of an answer spell, with the stop.

        White space that the answer itself begins with may be merged into the prompt's last token,
        and is masked with that.
        """
        written = self.write(content)
        lead = len(written) - len(written.lstrip()) if content[0].isspace() else 0
        space = " ?" if self.adds_space else ""
        optional = "".join(f"(?:{re.escape(c)})?" for c in written[:lead])
        return f"{space}{optional}{re.escape(written[lead:])}{space}{re.escape(self.stop)}"


def _spaced(text: str) -> str:
    return " " + text


def _spaced_and_trimmed(text: str) -> str:
    return " " + text.strip()


FAMILIES = {
    # Templates without a tokenizer of their own here.
    "alpaca": Family("</s>"),
    "chatml": Family("<|im_end|>"),
    "chatml_marked": Family("<|im_end|>", assistant_first=True),
    "commandr": Family("<|END_OF_TURN_TOKEN|>", str.strip),
    "deepseek": Family("<｜end▁of▁sentence｜>"),
    "greeting": Family("<|im_end|>", assistant_first=True),
    "llama3": Family("<|eot_id|>", str.strip),
    "mistral": Family("</s>", _spaced, system=False),
    "pocket": Family("<|end|>", assistant_first=True),
    "qwen_thinking": Family("<|im_end|>"),
    "vicuna": Family("</s>", _spaced),
    # Published structures, each on a tokenizer of its kind.
    "deepseek_r1": Family(
        "<｜end▁of▁sentence｜>",
        tokenizer=lambda: byte_level_bpe(LLAMA_WORDS, _R1_TOKENS, _R1_ORDINARY),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        prompt_is_prefix=False,  # its prompt opens a thought, which no conversation has there
    ),
    "gemma": Family(
        "<end_of_turn>",
        str.strip,
        system=False,
        tokenizer=lambda: sentencepiece_bpe(
            _GEMMA_TOKENS,
            ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "<b>", "</b>"],
            normalizer=normalizers.Replace(" ", "▁"),
            pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
        ),
        bos="<bos>",
        eos="<eos>",
    ),
    "llama2": Family(
        " </s>",
        _spaced_and_trimmed,
        tokenizer=lambda: sentencepiece_bpe(normalizer=space_before_each_stretch()),
        adds_space=True,
    ),
    "llama31": Family(
        "<|eot_id|>",
        str.strip,
        tokenizer=lambda: byte_level_bpe(LLAMA_WORDS, _LLAMA_TOKENS),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        writes_calls=True,
    ),
    "mistral_v3": Family(
        "</s>",
        _spaced_and_trimmed,
        system=False,
        tokenizer=lambda: sentencepiece_bpe(
            _MISTRAL_TOKENS,
            pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        ),
        adds_space=True,
        fast=False,  # fastokens does not load a Metaspace pre-tokenizer
    ),
    "phi3": Family(
        "<|end|>",
        tokenizer=lambda: sentencepiece_bpe(
            ["<|endoftext|>", *_PHI3_TURNS],
            strips=_PHI3_TURNS,
            normalizer=space_before_each_stretch(),
        ),
        eos="<|endoftext|>",
        adds_space=True,
    ),
    "phi4": Family(
        "<|im_end|>",
        tokenizer=lambda: byte_level_bpe(LLAMA_WORDS, _PHI4_TOKENS),
        bos="<|endoftext|>",
        eos="<|im_end|>",
    ),
    "qwen3": Family(
        "<|im_end|>",
        tokenizer=lambda: byte_level_bpe(
            QWEN_WORDS, _QWEN_TOKENS, _QWEN_ORDINARY, normalizers.NFC()
        ),
        bos=None,
        eos="<|im_end|>",
        writes_calls=True,
    ),
    "zephyr": Family(
        "</s>",
        tokenizer=lambda: sentencepiece_bpe(normalizer=space_before_each_stretch()),
        adds_space=True,
    ),
}
OWN_TOKENIZER = [name for name, f in FAMILIES.items() if f.tokenizer is not shared_tokenizer]

ALPHABET = "aeint 42 .,:<|>[]/{}\"'\n\t_☃é東👍 "
texts = st.text(ALPHABET, max_size=24)
answers = texts.filter(lambda text: text.strip())


@st.composite
def conversations(draw, family: Family) -> Conversation:
    turns = [Turn("system", draw(answers))] if family.system and draw(st.booleans()) else []
    if family.assistant_first and draw(st.booleans()):
        turns = [Turn("assistant", draw(answers))]
    for _ in range(draw(st.integers(0 if turns and turns[0].role == "assistant" else 1, 3))):
        weight = draw(st.sampled_from([0.0, 0.5, 1.0]))
        turns.append(Turn("user", draw(texts)))
        turns.append(Turn("assistant", draw(answers), draw(st.booleans()), weight))
    return Conversation(tuple(turns))


def texts_of(parts: list[str]) -> st.SearchStrategy[str]:
    """At most nine of these parts, joined."""
    return st.lists(st.sampled_from(parts), max_size=9).map("".join)
