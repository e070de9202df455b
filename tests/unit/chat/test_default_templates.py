"""Bases without a chat template, and tokenizers that are not byte-level."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError
from tests.unit.chat.tokenizer_kinds import sentencepiece_bpe, space_before_each_stretch, spell

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def llama2_kind() -> Tokenizer:
    return sentencepiece_bpe(normalizer=space_before_each_stretch())


def talk(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Turn(role, text) for role, text in turns))


def labels(renderer: ChatRenderer, conversation: Conversation) -> str:
    rendered = renderer.render(conversation)
    return spell(renderer, rendered.input_ids[rendered.loss_weights > 0])


@pytest.mark.parametrize("family", ["llama2", "mistral", "zephyr"])
def test_tokenizers_that_are_not_byte_level_are_masked_by_their_offsets(
    llama2_kind, template_of, compiled, family
):
    spec = TokenizerSpec(llama2_kind.to_str(), template_of(family), NAMED)
    renderer = ChatRenderer(spec, compiled=compiled)
    for answer in ("the answer", "é☃ is 42", "x</s>y"):
        conversation = talk(
            ("user", "Hello ☃"), ("assistant", answer), ("user", "x"), ("assistant", "42")
        )
        spelled = "".join(labels(renderer, conversation).split())
        assert spelled == f"{''.join(answer.split())}</s>42</s>"
        ids = renderer.render(conversation).input_ids
        prompt = renderer.prompt_ids(conversation.messages()[:1])
        assert np.array_equal(prompt, ids[: len(prompt)])


def test_a_base_like_llama_2_without_a_template_gets_the_inst_format(llama2_kind, compiled):
    renderer = ChatRenderer(TokenizerSpec(llama2_kind.to_str(), None, NAMED), compiled=compiled)
    conversation = talk(
        ("system", "be kind"),
        ("user", "Hello"),
        ("assistant", "42"),
        ("user", "x"),
        ("assistant", "the"),
    )
    text = "<s>[INST] <<SYS>>\nbe kind\n<</SYS>>\n\nHello [/INST] 42</s><s>[INST] x [/INST] the</s>"
    assert renderer.text(conversation) == text
    assert "".join(labels(renderer, conversation).split()) == "42</s>the</s>"


def test_another_base_without_a_template_gets_the_alpaca_prompt(byte_level, compiled):
    spec = TokenizerSpec(byte_level.to_str(), None, {"eos_token": "</s>"})
    renderer = ChatRenderer(spec, compiled=compiled)
    conversation = talk(("user", "Hello"), ("assistant", "42"))
    assert renderer.text(conversation) == "### Instruction:\nHello\n\n### Response:\n42</s>\n\n"
    assert labels(renderer, conversation) == "42</s>"


def test_a_base_with_neither_template_nor_end_token_is_refused(byte_level):
    with pytest.raises(UserError, match="neither a chat template nor an end token"):
        ChatRenderer(TokenizerSpec(byte_level.to_str(), None, {}))
