"""Token offsets from the tokens' lengths are the tokenizers library's, for every tokenizer kind:
byte-level with words split as Llama-3 and Qwen do, with added tokens that are not special, and
sentencepiece's with byte fallback and a space set before the text or before each stretch.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.chat.encoder import Encoded, Encoder, byte_offsets
from pipelines.core.conversation import Conversation, Turn
from tests.unit.chat.template_families import OWN_TOKENIZER, texts_of


def same_offsets(drawn: list[str], encoded: Encoded, other: Encoded) -> bool:
    """At every character: which tokens begin there or later, and which end there or before.

    For the tokenizers library, all bytes of one character have that character's offsets.
    """
    edges = np.concatenate(
        [byte_offsets(text) + base for text, base in zip(drawn, encoded.bases, strict=False)]
    )
    ours, theirs = (
        (
            np.searchsorted(each.starts, edges, "left"),
            np.searchsorted(each.ends, edges, "right"),
        )
        for each in (encoded, other)
    )
    return np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("name", OWN_TOKENIZER)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_text_cut_at_its_special_tokens_has_the_same_ids(renderers, name, data):
    """Texts with injected special tokens are encoded that way; nothing is injected here."""
    encoder = renderers(name).encoder
    parts = [*encoder.added_texts, "a", "the net", " ", "\n", "  ", "é☃", "<"]
    text = data.draw(texts_of(parts))
    at_once, cut = encoder.encode([text]), encoder.encode_protected(text, ())
    assert at_once.ids.tolist() == cut.ids.tolist() == encoder.encode_reference(text).tolist()
    assert same_offsets([text], at_once, cut)


@pytest.mark.parametrize("name", OWN_TOKENIZER)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_offsets_by_token_lengths_are_the_librarys(renderers, name, data):
    encoder = renderers(name).encoder
    reference = Encoder(renderers(name).spec, use_token_lengths=False)
    words = ["a", "the net", " ", "\n", "  ", "é☃", "e\u0301", "▁", "<", "\u0958"]
    parts = [*encoder.added_texts, *words]
    drawn = data.draw(st.lists(texts_of(parts), min_size=3, max_size=3))
    ours, theirs = encoder.encode(drawn), reference.encode(drawn)
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert same_offsets(drawn, ours, theirs)


@pytest.mark.parametrize("name", sorted(set(OWN_TOKENIZER) - {"phi3"}))
def test_token_lengths_suffice_for_plain_text(renderers, name):
    """Except with Phi-3's special tokens, which absorb white space."""
    encoder = renderers(name).encoder
    text = renderers(name).text(
        Conversation((Turn("user", "the net"), Turn("assistant", "it is 42 é☃")))
    )
    encoded = encoder.encode([text])
    *_, unknown = encoder.token_lengths.token_offsets(
        encoded.ids, encoded.offsets, encoded.bases, [text]
    )
    assert not len(unknown)
