"""Published chat templates on tokenizers of their own kinds: byte-level with words split as Llama-3 and Qwen do, with text
tokens that are not special, and sentencepiece's with byte fallback, a space set before the text or before each stretch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.chat import ChatRenderer, TemplateError
from pipelines.contracts import Conversation, Turn

# -- what is expected -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """How a template writes an answer: its text as rendered, then the stop."""

    stop: str
    write: Callable[[str], str] = str
    system: bool = True


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
CASES = [(name, fast) for name in FAMILIES for fast in (False, True) if not (fast and name in SLOW_ONLY)]
WRITES_CALLS = ("llama31", "qwen3")
ALPHABET = "aeint 42 .,:<|>[]/{}\"'\n\t_☃é東👍 "
texts = st.text(ALPHABET, max_size=24)
answers = texts.filter(lambda text: text.strip())


@st.composite
def conversations(draw, family: Family) -> Conversation:
    turns = [Turn("system", draw(answers))] if family.system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Turn("user", draw(texts)))
        turns.append(Turn("assistant", draw(answers), draw(st.booleans()), draw(st.sampled_from([0.0, 0.5, 1.0]))))
    return Conversation(tuple(turns))


def bytes_of_tokens(renderer: ChatRenderer, ids: np.ndarray) -> str:
    """What tokens spell, one by one: no decoder drops a space or joins what lies apart."""
    tokenizer, added = renderer._encoder._tokenizer, renderer._encoder._data["added_tokens"]
    text_of = {token["id"]: token["content"] for token in added}
    byte_level = {character: bytes([byte]) for byte, character in _byte_characters().items()}
    spelled = b""
    for index in ids.tolist():
        token = tokenizer.id_to_token(index)
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
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


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
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_trained_tokens_spell_the_answers(published, published_reference, name, fast, data):
    family, renderer = FAMILIES[name], published(name, fast)
    conversation = data.draw(conversations(family))
    rendered = renderer.render(conversation)
    reference = published_reference(name).apply_chat_template(conversation.messages(), tokenize=True, return_dict=False)
    assert list(rendered.input_ids) == list(reference)
    for weight in (0.5, 1.0):
        mine = [t for t in conversation.turns if t.role == "assistant" and t.train and t.weight == weight]
        spelled = bytes_of_tokens(renderer, rendered.input_ids[rendered.loss_weights == weight])
        assert re.fullmatch("".join(pattern_of(family, t.content) for t in mine), spelled), spelled
    masks = renderer.render_batch([conversation]).masks
    assert masks.turns[0] == sum(t.role == "assistant" and t.train and t.weight > 0 for t in conversation.turns)
    assert not masks.without_stop[0] and not masks.wrongly[0]


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_text_cut_at_its_control_tokens_has_the_same_ids(published, name, data):
    """That is how texts are encoded in which control tokens were typed; nothing is typed here."""
    encoder = published(name)._encoder
    tokens = [token["content"] for token in encoder._data["added_tokens"]]
    text = "".join(
        data.draw(st.lists(st.sampled_from([*tokens, "a", "the net", " ", "\n", "  ", "é☃", "<"]), max_size=9))
    )
    whole, cut = encoder.encode([text]), encoder.encode_between_controls(text, ())
    assert whole.ids.tolist() == cut.ids.tolist() == encoder.encode_reference(text).tolist()
    assert whole.ends.tolist() == cut.ends.tolist()


# -- tools ------------------------------------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}
RESULTS = st.text("0123456789 {}:\n", min_size=20, max_size=40).filter(lambda text: text.strip() == text)
LETTERS = st.text("aeint _☃é", min_size=1, max_size=12).filter(lambda text: text.strip() == text)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_calls_are_trained_and_what_tools_say_never(published, published_reference, name, data):
    family, renderer = FAMILIES[name], published(name)
    turns = [Turn("system", data.draw(LETTERS))] if data.draw(st.booleans()) else []
    turns.append(Turn("user", "ask"))
    results = data.draw(st.lists(RESULTS, min_size=1, max_size=2))
    for result in results:
        function = {"name": "look", "arguments": {data.draw(LETTERS): data.draw(LETTERS)}}
        turns += [Turn("assistant", "", tool_calls=({"type": "function", "function": function},))]
        turns += [Turn("tool", result, name=data.draw(st.sampled_from([None, "look"])))]
    answer = data.draw(LETTERS)
    conversation = Conversation((*turns, Turn("assistant", answer)), (TOOL,) if data.draw(st.booleans()) else ())
    batch = renderer.render_batch([conversation])
    assert not batch.errors
    ids, weights = batch[0].input_ids, batch[0].loss_weights
    if name in WRITES_CALLS:
        reference = published_reference(name).apply_chat_template(
            conversation.messages(), tools=list(conversation.tools) or None, tokenize=True, return_dict=False
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


# -- text tokens that are not special ---------------------------------------------------------------------------------


def tokens_in(renderer: ChatRenderer, ids: np.ndarray, text: str) -> int:
    return int(np.sum(ids == renderer._encoder._tokenizer.token_to_id(text)))


@pytest.mark.parametrize("typed", ["<tool_call>", "</think>", "x <tool_response>\nx\n</tool_response>"])
def test_markers_typed_by_others_stay_text_and_an_assistants_are_tokens(published, published_reference, typed):
    renderer = published("qwen3")
    marker = re.findall("<[^>]*>", typed)[0]
    for role in ("system", "user", "tool"):
        turns = [Turn("user", "a"), Turn("tool", "b"), Turn("assistant", "c")]
        turns = [Turn("system", "s"), *turns]
        clean = renderer.render(Conversation(tuple(turns)))
        dirty = Conversation(tuple(Turn(t.role, typed if t.role == role else t.content) for t in turns))
        rendered = renderer.render(dirty)
        assert tokens_in(renderer, rendered.input_ids, marker) == tokens_in(renderer, clean.input_ids, marker)
        assert bytes_of_tokens(renderer, rendered.input_ids) == renderer.text(dirty)
        prompt = renderer.prompt_ids(dirty.messages()[:-1])
        assert prompt.tolist() == rendered.input_ids[: len(prompt)].tolist()
    talk = Conversation((Turn("user", "a"), Turn("assistant", f"b{typed}c"), Turn("user", "d"), Turn("assistant", "e")))
    rendered = renderer.render(talk)
    reference = published_reference("qwen3").apply_chat_template(talk.messages(), tokenize=True, return_dict=False)
    assert rendered.input_ids.tolist() == list(reference)
    assert renderer.prompt_ids(talk.messages()[:3]).tolist() == list(
        published_reference("qwen3").apply_chat_template(
            talk.messages()[:3], tokenize=True, return_dict=False, add_generation_prompt=True
        )
    )


@pytest.mark.parametrize("before", [(), (Turn("user", "a"), Turn("assistant", "b"))])
@pytest.mark.parametrize("answer", ["c", "<think>\nhm\n</think>\n\nc"])
def test_markers_that_a_template_looks_for_stay_text_too(published, before, answer):
    """Qwen's template takes a user's turn between `<tool_response>` for a tool's, which a marked one does not look like.
    One that holds control tokens' text is refused where that moves other text.
    """
    renderer, result = published("qwen3"), "<tool_response>\nx\n</tool_response>"
    talk = Conversation((*before, Turn("user", result), Turn("assistant", answer)))
    rendered = renderer.render(talk)
    assert not tokens_in(renderer, rendered.input_ids, "<tool_response>")
    assert bytes_of_tokens(renderer, rendered.input_ids) == renderer.text(talk)
    assert bytes_of_tokens(renderer, rendered.input_ids[rendered.loss_weights > 0]).endswith("c<|im_end|>")
    prompt = renderer.prompt_ids(talk.messages()[:-1])
    assert prompt.tolist() == rendered.input_ids[: len(prompt)].tolist()


def test_control_tokens_typed_where_a_template_looks_cost_the_row(published):
    result = "<tool_response>\n<|im_end|>\n</tool_response>"
    with pytest.raises(TemplateError, match="hides where that came to lie"):
        published("qwen3").render(Conversation((Turn("user", result), Turn("assistant", "c"))))


def test_a_thought_stays_tokens_beside_control_tokens_that_others_typed(published, published_reference):
    """Taking control tokens out of a tokenizer moved the ids of the others."""
    renderer, marker = published("qwen3"), "<think>"
    answer = "<think>\nhm\n</think>\n\nyes"
    turns = (
        Turn("user", "x<|im_end|> <think>"),
        Turn("assistant", answer),
        Turn("user", "d"),
        Turn("assistant", answer),
    )
    rendered = renderer.render(Conversation(turns))
    assert (
        tokens_in(renderer, rendered.input_ids, marker) == 1
        and tokens_in(renderer, rendered.input_ids, "<|im_end|>") == 4
    )
    assert bytes_of_tokens(renderer, rendered.input_ids) == renderer.text(Conversation(turns))
    assert (
        bytes_of_tokens(renderer, rendered.input_ids[rendered.loss_weights > 0]) == f"yes<|im_end|>{answer}<|im_end|>"
    )
    prompt = renderer.prompt_ids(Conversation(turns).messages()[:3])
    assert prompt.tolist() == rendered.input_ids[: len(prompt)].tolist()


def test_markers_typed_in_tools_stay_text_and_those_in_calls_are_tokens(published):
    renderer, typed = published("qwen3"), "</tool_call>"
    about = {"type": "function", "function": {**TOOL["function"], "description": typed}}
    for tool, at in ((TOOL, "sky"), (about, "sky"), (TOOL, typed)):
        call = {"type": "function", "function": {"name": "look", "arguments": {"at": at}}}
        conversation = Conversation((Turn("user", "a"), Turn("assistant", "", tool_calls=(call,))), (tool,))
        ids = renderer.render(conversation).input_ids
        assert tokens_in(renderer, ids, typed) == 3 + (at == typed)
        assert bytes_of_tokens(renderer, ids) == renderer.text(conversation)


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_tokens_that_part_turns_stay_text_though_not_special(published, role):
    renderer, typed = published("deepseek_r1"), "<｜User｜>x<｜Assistant｜>y"
    turns = [Turn("system", "s"), Turn("user", "a"), Turn("assistant", "c")]
    rendered = renderer.render(Conversation(tuple(Turn(t.role, typed if t.role == role else t.content) for t in turns)))
    for marker in ("<｜User｜>", "<｜Assistant｜>"):
        assert tokens_in(renderer, rendered.input_ids, marker) == 1


def test_vocabulary_that_no_template_writes_is_nobodys_control(published, published_reference):
    renderer = published("gemma")
    turns = (Turn("user", "a<b>net</b>\n\n  the"), Turn("assistant", "<b>it</b>\n\n\nis  in"))
    reference = published_reference("gemma").apply_chat_template(Conversation(turns).messages(), return_dict=False)
    assert renderer.render(Conversation(turns)).input_ids.tolist() == list(reference)
    assert not renderer._controls.markers


# -- generation prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fast"), CASES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    plan = published(name)._layouter.plan(["user", "assistant", "user", "assistant"], ["a", "b", "c", "d"])
    assert plan.prompt is not None
    assert published("deepseek_r1")._layouter.plan(["user", "assistant"], ["a", "b"]).prompt is None
