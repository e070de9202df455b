"""Published chat templates on tokenizers of their own kinds: byte-level with words split as Llama-3 and Qwen do, with text
tokens that are not special, and sentencepiece's with byte fallback, a space set before the text or before each stretch.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.chat.encoder import Encoded, Encoder, byte_offsets
from pipelines.core.conversation import Conversation, Turn
from tests.unit.chat.families import Family, conversations, texts_of

# -- what is expected -------------------------------------------------------------------------------------------------


FAMILIES = {
    "llama31": Family("<|eot_id|>", str.strip),
    "qwen3": Family("<|im_end|>"),
    "mistral_v3": Family("</s>", lambda text: " " + text.strip(), system=False),
    "gemma": Family("<end_of_turn>", str.strip, system=False),
    "phi3": Family("<|end|>"),
    "phi4": Family("<|im_end|>"),
    "deepseek_r1": Family("<｜end▁of▁sentence｜>"),
    "zephyr": Family("</s>"),
    "llama2": Family(" </s>", lambda text: " " + text.strip()),
}
SLOW_ONLY = ("mistral_v3",)  # fastokens does not load a Metaspace pre-tokenizer
CASES = [
    (name, fast) for name in FAMILIES for fast in (False, True) if not (fast and name in SLOW_ONLY)
]
WRITES_CALLS = ("llama31", "qwen3")


def same_places(drawn: list[str], one: Encoded, other: Encoded) -> bool:
    """At every character: which tokens begin there or later, and which end there or before. Bytes of one character share
    its place for the tokenizers library.
    """
    edges = np.concatenate(
        [byte_offsets(text) + base for text, base in zip(drawn, one.bases, strict=False)]
    )
    here, there = (
        (
            np.searchsorted(encoded.starts, edges, "left"),
            np.searchsorted(encoded.ends, edges, "right"),
        )
        for encoded in (one, other)
    )
    return np.array_equal(here[0], there[0]) and np.array_equal(here[1], there[1])


def pattern_of(family: Family, content: str) -> str:
    """What an answer's trained tokens spell: all of it. White space that it begins with may be in the prompt's last token
    and be masked with that, and a tokenizer may set a space before it.
    """
    written = family.write(content)
    lead = len(written) - len(written.lstrip()) if content[0].isspace() else 0
    return (
        " ?"
        + "".join(f"(?:{re.escape(c)})?" for c in written[:lead])
        + re.escape(written[lead:])
        + " ?"
        + re.escape(family.stop)
    )


@pytest.mark.parametrize(("name", "fast"), CASES)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_trained_tokens_spell_the_answers(
    published, published_reference, bytes_of_tokens, name, fast, data
):
    family, renderer = FAMILIES[name], published(name, fast)
    conversation = data.draw(conversations(family))
    rendered = renderer.render(conversation)
    reference = published_reference(name).apply_chat_template(
        conversation.messages(), tokenize=True, return_dict=False
    )
    assert list(rendered.input_ids) == list(reference)
    for weight in (0.5, 1.0):
        mine = [
            t
            for t in conversation.turns
            if t.role == "assistant" and t.train and t.weight == weight
        ]
        spelled = bytes_of_tokens(renderer, rendered.input_ids[rendered.loss_weights == weight])
        assert re.fullmatch("".join(pattern_of(family, t.content) for t in mine), spelled), spelled
    masks = renderer.render_batch([conversation]).masks
    assert masks.turns[0] == sum(
        t.role == "assistant" and t.train and t.weight > 0 for t in conversation.turns
    )
    assert not masks.without_stop[0] and not masks.wrongly[0]


@pytest.mark.parametrize("name", FAMILIES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_text_cut_at_its_control_tokens_has_the_same_ids(published, name, data):
    """That is how texts are encoded in which control tokens were typed; nothing is typed here."""
    encoder = published(name)._encoder
    tokens = [token["content"] for token in encoder._data["added_tokens"]]
    text = data.draw(texts_of([*tokens, "a", "the net", " ", "\n", "  ", "é☃", "<"]))
    whole, cut = encoder.encode([text]), encoder.encode_between_controls(text, ())
    assert whole.ids.tolist() == cut.ids.tolist() == encoder.encode_reference(text).tolist()
    assert same_places([text], whole, cut)


@pytest.mark.parametrize("name", FAMILIES)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_places_by_lengths_are_the_tokenizers_own(published, name, data):
    encoder = published(name)._encoder
    tokens = [token["content"] for token in encoder._data["added_tokens"]]
    parts = [*tokens, "a", "the net", " ", "\n", "  ", "é☃", "e\u0301", "▁", "<", "\u0958"]
    drawn = data.draw(st.lists(texts_of(parts), min_size=3, max_size=3))
    encoded = encoder.encode(drawn)
    own = Encoder(published(name).spec)
    object.__setattr__(own, "_widths", None)
    asked = own.encode(drawn)
    assert encoded.ids.tolist() == asked.ids.tolist()
    assert same_places(drawn, encoded, asked)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"phi3"}))
def test_places_are_known_by_lengths_in_plain_text(published, name):
    """But where tokens eat white space, as Phi-3's do."""
    encoder = published(name)._encoder
    text = published(name).text(
        Conversation((Turn("user", "the net"), Turn("assistant", "it is 42 é☃")))
    )
    encoded = encoder.encode([text])
    assert not len(encoder._widths.places(encoded.ids, encoded.offsets, encoded.bases, [text])[2])


# -- tools ------------------------------------------------------------------------------------------------------------

TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "d", "parameters": {"type": "object"}},
}
RESULTS = st.text("0123456789 {}:\n", min_size=20, max_size=40).filter(
    lambda text: text.strip() == text
)
LETTERS = st.text("aeint _☃é", min_size=1, max_size=12).filter(lambda text: text.strip() == text)


@pytest.mark.parametrize("name", FAMILIES)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_calls_are_trained_and_what_tools_say_never(
    published, published_reference, bytes_of_tokens, name, data
):
    family, renderer = FAMILIES[name], published(name)
    turns = [Turn("system", data.draw(LETTERS))] if data.draw(st.booleans()) else []
    turns.append(Turn("user", "ask"))
    results = data.draw(st.lists(RESULTS, min_size=1, max_size=2))
    for result in results:
        function = {"name": "look", "arguments": {data.draw(LETTERS): data.draw(LETTERS)}}
        turns += [Turn("assistant", "", tool_calls=({"type": "function", "function": function},))]
        turns += [Turn("tool", result, name=data.draw(st.sampled_from([None, "look"])))]
    answer = data.draw(LETTERS)
    conversation = Conversation(
        (*turns, Turn("assistant", answer)), (TOOL,) if data.draw(st.booleans()) else ()
    )
    batch = renderer.render_batch([conversation])
    assert not batch.errors
    ids, weights = batch[0].input_ids, batch[0].loss_weights
    if name in WRITES_CALLS:
        reference = published_reference(name).apply_chat_template(
            conversation.messages(),
            tools=list(conversation.tools) or None,
            tokenize=True,
            return_dict=False,
        )
        assert ids.tolist() == list(reference)
    spelled, masked = (bytes_of_tokens(renderer, ids[mask]) for mask in (weights > 0, weights == 0))
    assert re.search(" ?" + re.escape(answer) + " ?" + re.escape(family.stop) + "$", spelled)
    assert spelled.count('"name": "look"') == len(results) and "<think>" not in spelled
    written = [result.replace("\n", "\\n") if name == "llama31" else result for result in results]
    assert all(result in masked and result not in spelled for result in written)
    assert batch.masks.turns[0] == len(results) + 1
    assert not batch.masks.without_stop[0] and not batch.masks.wrongly[0]
    prompt = renderer.prompt_ids(conversation.messages()[:-1], conversation.tools)
    assert prompt.tolist() == ids[: len(prompt)].tolist() or name == "deepseek_r1"


@pytest.mark.parametrize("name", FAMILIES)
def test_whether_a_text_beside_a_call_is_rendered_is_known(published, name):
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    text = published(name).text(
        Conversation((Turn("user", "ask"), Turn("assistant", "I look", tool_calls=(call,))))
    )
    assert ("I look" in text) == published(name).shows_text_beside_calls == (name != "llama31")


# -- generation prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fast"), CASES)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_row_is_checked_to_begin_with_its_prompt(published, name, fast, data):
    """The quick ways say what encoding each prompt by itself does, also where an answer's white space joins the prompt."""
    renderer = published(name, fast)
    talks = data.draw(st.lists(conversations(FAMILIES[name]), min_size=1, max_size=3))
    batch = renderer.render_batch(talks)
    expected = []
    for i, talk in enumerate(talks):
        prompt = renderer.prompt_ids(talk.messages()[:-1])
        begins = prompt.tolist() == batch[i].input_ids[: len(prompt)].tolist()
        expected.append(begins and not batch[i].loss_weights[len(prompt) - 1])
    assert renderer.begin_with_prompts(talks, batch, range(len(talks))) == expected


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"deepseek_r1"}))
def test_prompts_are_known_from_plans(published, name):
    """Of R1's template no prompt is the beginning of a whole conversation: it opens a thought there."""
    plan = published(name)._layouter.plan(
        ["user", "assistant", "user", "assistant"], ["a", "b", "c", "d"]
    )
    assert plan.prompt is not None
    assert published("deepseek_r1")._layouter.plan(["user", "assistant"], ["a", "b"]).prompt is None
