"""Plain texts have the ids that transformers gives them, and an end."""

from __future__ import annotations

import dataclasses

import pytest
from tokenizers import Tokenizer, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.chat.default_templates import ALPACA_TEMPLATE, CHATML_TEMPLATE
from pipelines.core.conversation import Conversation, Turn
from tests.unit.chat.template_families import shared_tokenizer
from tests.unit.chat.tokenizer_kinds import sentencepiece_bpe, space_before_each_stretch

TEXTS = ["the answer is 42", "  two\n\nlines ", "naïve ☃ 東京", "", "x", "a" * 300]
METASPACE = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
TOKENIZERS = {
    "byte-level": shared_tokenizer,
    "prefix-space": lambda: sentencepiece_bpe(normalizer=space_before_each_stretch()),
    "first-space": lambda: sentencepiece_bpe(pre_tokenizer=METASPACE),
}


def spec_of(tokenizer: Tokenizer, adds_bos: bool) -> TokenizerSpec:
    if adds_bos:
        bos = ("<s>", tokenizer.token_to_id("<s>"))
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[bos])
    return TokenizerSpec(
        tokenizer.to_str(), ALPACA_TEMPLATE, {"bos_token": "<s>", "eos_token": "</s>"}
    )


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_the_tokenizers_own_with_its_bos_and_an_eos(name: str, adds_bos: bool) -> None:
    spec = spec_of(TOKENIZERS[name](), adds_bos)
    reference = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(spec.tokenizer_json))
    turns = [Turn("text", text, weight=0.5) for text in TEXTS]
    batch = ChatRenderer(spec).render_batch([Conversation((turn,)) for turn in turns])
    end = Tokenizer.from_str(spec.tokenizer_json).token_to_id("</s>")
    for i, text in enumerate(TEXTS):
        assert batch[i].input_ids.tolist() == [*reference(text)["input_ids"], end]
        assert batch[i].loss_weights.tolist() == [0.5] * len(batch[i].input_ids)
    assert batch.masks.num_loss_turns.tolist() == [1] * len(TEXTS)
    assert not batch.masks.num_missing_stop.any() and not batch.masks.num_prompts.any()


def test_special_tokens_in_a_text_stay_text_and_texts_and_rows_share_a_batch() -> None:
    renderer = ChatRenderer(spec_of(shared_tokenizer(), adds_bos=True))
    special = set(renderer.special_tokens.ids.values())
    text = Conversation((Turn("text", "one</s><|im_end|> two"),))
    talk = Conversation((Turn("user", "a"), Turn("assistant", "b")))
    batch = renderer.render_batch([talk, text, talk])
    assert [int(i) in special for i in batch[1].input_ids].count(True) == 2  # bos and eos
    assert renderer.decode(batch[1].input_ids) == "one</s><|im_end|> two"
    alone = renderer.render(talk)
    for i in (0, 2):
        assert batch[i].input_ids.tolist() == alone.input_ids.tolist()
        assert batch[i].loss_weights.tolist() == alone.loss_weights.tolist()


def test_a_text_needs_an_end_token() -> None:
    spec = spec_of(shared_tokenizer(), adds_bos=False)
    spec = dataclasses.replace(spec, template=CHATML_TEMPLATE, named_tokens={})
    batch = ChatRenderer(spec).render_batch([Conversation((Turn("text", "a"),))])
    assert batch.errors == {0: "plain text needs an end token, and the tokenizer has no eos_token"}
