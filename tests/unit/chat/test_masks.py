"""For every template family: ids are those of transformers, and the trained tokens spell the answers and their stops."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.core.conversation import Conversation, Turn
from tests.unit.chat.families import Family, conversations

FAMILIES = {
    "chatml": Family("<|im_end|>"),
    "chatml_marked": Family("<|im_end|>", assistant_first=True),
    "llama2": Family(" </s>", lambda text: " " + text.strip()),
    "llama3": Family("<|eot_id|>", str.strip),
    "mistral": Family("</s>", lambda text: " " + text, system=False),
    "gemma": Family("<end_of_turn>", str.strip, system=False),
    "phi3": Family("<|end|>"),
    "qwen_thinking": Family("<|im_end|>"),
    "deepseek": Family("<｜end▁of▁sentence｜>"),
    "zephyr": Family("</s>"),
    "greeting": Family("<|im_end|>", assistant_first=True),
    "vicuna": Family("</s>", lambda text: " " + text),
    "commandr": Family("<|END_OF_TURN_TOKEN|>", str.strip),
    "alpaca": Family("</s>"),
    "pocket": Family("<|end|>", assistant_first=True),
}


def pattern_of(family: Family, content: str) -> str:
    """What an answer's trained tokens spell: all of it, except that white space which the answer itself begins with may
    have merged into the prompt's last token and be masked with it.
    """
    written = family.write(content)
    lead = len(written) - len(written.lstrip()) if content[0].isspace() else 0
    return "".join(f"(?:{re.escape(c)})?" for c in written[:lead]) + re.escape(
        written[lead:] + family.stop
    )


@pytest.mark.parametrize("fast", [False, True], ids=["tokenizers", "fastokens"])
@pytest.mark.parametrize("name", FAMILIES)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_trained_tokens_spell_the_answers(renderer_of, reference_of, name, fast, data):
    family, renderer = FAMILIES[name], renderer_of(name, fast)
    conversation = data.draw(conversations(family))
    rendered = renderer.render(conversation)
    reference = reference_of(name).apply_chat_template(
        conversation.messages(), tokenize=True, return_dict=False
    )
    assert list(rendered.input_ids) == list(reference)
    for weight in (0.5, 1.0):
        mine = [
            t
            for t in conversation.turns
            if t.role == "assistant" and t.train and t.weight == weight
        ]
        spelled = renderer.decode(
            rendered.input_ids[rendered.loss_weights == weight], skip_control=False
        )
        assert re.fullmatch("".join(pattern_of(family, t.content) for t in mine), spelled), spelled
    assert set(rendered.loss_weights) <= {0.0, 0.5, 1.0}
    masks = renderer.render_batch([conversation]).masks
    assert masks.turns[0] == sum(
        t.role == "assistant" and t.train and t.weight > 0 for t in conversation.turns
    )
    assert not masks.without_stop[0] and not masks.wrongly[0]


RESULTS = st.text("0123456789 {}:\n", min_size=20, max_size=40).filter(
    lambda text: text.strip() == text
)


@pytest.mark.parametrize("name", FAMILIES)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_calls_are_trained_and_what_tools_say_never(renderer_of, name, data):
    """Also by templates that know no tools, which get them as text; results are of characters that answers lack."""
    family, renderer = FAMILIES[name], renderer_of(name)
    letters = st.text("aeint _☃é", min_size=1, max_size=12).filter(
        lambda text: text.strip() == text
    )
    results = data.draw(st.lists(RESULTS, min_size=1, max_size=2))
    turns = [Turn("system", data.draw(letters))] if data.draw(st.booleans()) else []
    turns.append(Turn("user", "ask"))
    for result in results:
        function = {"name": "look", "arguments": {data.draw(letters): data.draw(letters)}}
        turns += [
            Turn(
                "assistant",
                data.draw(st.just("") | letters),
                tool_calls=({"type": "function", "function": function},),
            )
        ]
        turns += [Turn("tool", result, name=data.draw(st.sampled_from([None, "look"])))]
    answer = data.draw(letters)
    conversation = Conversation((*turns, Turn("assistant", answer)))
    batch = renderer.render_batch([conversation])
    assert not batch.errors
    ids, weights = batch[0].input_ids, batch[0].loss_weights
    spelled, masked = (
        renderer.decode(ids[mask], skip_control=False) for mask in (weights > 0, weights == 0)
    )
    assert spelled.endswith(answer + family.stop) and spelled.count('"look"') == len(results)
    assert (
        all(result in masked and result not in spelled for result in results)
        and '"look"' not in masked
    )
    assert batch.masks.turns[0] == len(results) + 1
    assert not batch.masks.without_stop[0] and not batch.masks.wrongly[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_generation_prompt_begins_the_training_ids(renderer_of, name):
    renderer = renderer_of(name)
    talk = Conversation(
        (
            Turn("user", "Hello, world"),
            Turn("assistant", "it is 42"),
            Turn("user", "the"),
            Turn("assistant", "answer"),
        )
    )
    rendered = renderer.render(talk)
    prompt = renderer.prompt_ids(talk.messages()[:3])
    assert np.array_equal(prompt, rendered.input_ids[: len(prompt)])
    last_masked = np.flatnonzero(rendered.loss_weights[: len(prompt)] == 0)[-1]
    assert last_masked == len(prompt) - 1
    assert rendered.input_ids[np.flatnonzero(rendered.loss_weights)[-1]] in renderer.stop_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_control_tokens_typed_in_data_stay_text(renderer_of, name):
    renderer = renderer_of(name)
    control = renderer._controls.tokens
    typed = "x</s><|im_end|><|im_start|>assistant<|end|><|assistant|><｜Assistant｜><end_of_turn>[/INST]"
    clean = renderer.render(Conversation((Turn("user", "x"), Turn("assistant", "y"))))
    dirty = renderer.render(Conversation((Turn("user", typed), Turn("assistant", "y" + typed))))
    ids = set(control.values())
    assert [i for i in dirty.input_ids if i in ids] == [i for i in clean.input_ids if i in ids]
    spelled = renderer.decode(dirty.input_ids[dirty.loss_weights > 0], skip_control=False)
    assert spelled == FAMILIES[name].write("y" + typed) + FAMILIES[name].stop
    prompt = renderer.prompt_ids([{"role": "user", "content": typed}])
    assert np.array_equal(prompt, dirty.input_ids[: len(prompt)])


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"commandr"}))
def test_plain_conversations_are_planned(renderer_of, name):
    """All families but the one that writes turns by a macro are rendered without running their template."""
    layouter = renderer_of(name)._layouter
    assert layouter.plan(["user", "assistant"], ["a", "b"]) is not None


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_system_turn_that_the_template_drops_or_refuses_opens_the_first_user_turn(
    renderer_of, reference_of, name
):
    talk = (Turn("system", "be kind"), Turn("user", "a"), Turn("assistant", "b"))
    folded = [{"role": "user", "content": "be kind\n\na"}, {"role": "assistant", "content": "b"}]
    expected = reference_of(name).apply_chat_template(folded, tokenize=True, return_dict=False)
    rendered = renderer_of(name).render(Conversation(talk))
    assert list(rendered.input_ids) == list(expected)
    prompt = renderer_of(name).prompt_ids(Conversation(talk).messages()[:2])
    assert np.array_equal(prompt, rendered.input_ids[: len(prompt)])
