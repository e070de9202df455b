"""For every template family: ids are those of transformers, and exactly the answers have a loss."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.chat import TemplateError
from pipelines.core.conversation import Conversation, Turn
from tests.unit.chat.template_families import FAMILIES, conversations
from tests.unit.chat.tokenizer_kinds import spell

# fastokens changes the encoder and the fast path the rendering, so three of the four pairs suffice.
MODES = {
    "compiled": (False, True),
    "compiled-fastokens": (True, True),
    "interpreted": (False, False),
}
CASES = [
    pytest.param(name, fast, compiled, id=f"{name}-{mode}")
    for name, family in FAMILIES.items()
    for mode, (fast, compiled) in MODES.items()
    if family.fast or not fast
]


def draws(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@pytest.mark.parametrize(("name", "fast", "compiled"), CASES)
@draws(10)
@given(data=st.data())
def test_tokens_with_a_loss_spell_the_answers(renderers, reference_of, name, fast, compiled, data):
    family, renderer = FAMILIES[name], renderers(name, fast, compiled)
    conversation = data.draw(conversations(family))
    rendered = renderer.render(conversation)
    reference = reference_of(name).apply_chat_template(
        conversation.messages(), tokenize=True, return_dict=False
    )
    assert list(rendered.input_ids) == list(reference)
    answers = [t for t in conversation.turns if t.role == "assistant" and t.train]
    for weight in (0.5, 1.0):
        spelled = spell(renderer, rendered.input_ids[rendered.loss_weights == weight])
        pattern = "".join(family.answer_pattern(t.content) for t in answers if t.weight == weight)
        assert re.fullmatch(pattern, spelled), spelled
    assert set(rendered.loss_weights) <= {0.0, 0.5, 1.0}
    masks = renderer.render_batch([conversation]).masks
    assert masks.num_loss_turns[0] == sum(t.weight > 0 for t in answers)
    assert not masks.num_missing_stop[0] and not masks.num_leaked_tokens[0]


TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "d", "parameters": {"type": "object"}},
}
# Results and answers have no character in common.
RESULTS = st.text("0123456789 {}:\n", min_size=20, max_size=40).filter(
    lambda text: text.strip() == text
)
# The tokenizers of sentencepiece's kind merge "ten" with the line break of a prompt.
LETTERS = st.text("aeint _☃é", min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and not text.startswith("ten")
)


@pytest.mark.parametrize("name", FAMILIES)
@draws(12)
@given(data=st.data())
def test_calls_have_a_loss_and_tool_results_never(renderers, reference_of, name, data):
    """Also with templates that know no tools and get them as text. No tool call is compiled."""
    family, renderer = FAMILIES[name], renderers(name)
    turns = [Turn("system", data.draw(LETTERS))] if data.draw(st.booleans()) else []
    turns.append(Turn("user", "ask"))
    results = data.draw(st.lists(RESULTS, min_size=1, max_size=2))
    for result in results:
        function = {"name": "look", "arguments": {data.draw(LETTERS): data.draw(LETTERS)}}
        call = {"type": "function", "function": function}
        turns += [Turn("assistant", data.draw(st.just("") | LETTERS), tool_calls=(call,))]
        turns += [Turn("tool", result, name=data.draw(st.sampled_from([None, "look"])))]
    answer, tools = data.draw(LETTERS), (TOOL,) if data.draw(st.booleans()) else ()
    conversation = Conversation((*turns, Turn("assistant", answer)), tools)
    batch = renderer.render_batch([conversation])
    assert not batch.errors
    ids, weights = batch[0].input_ids, batch[0].loss_weights
    if family.writes_calls:
        reference = reference_of(name).apply_chat_template(
            conversation.messages(), tools=list(tools) or None, tokenize=True, return_dict=False
        )
        assert ids.tolist() == list(reference)
    spelled, masked = (spell(renderer, ids[mask]) for mask in (weights > 0, weights == 0))
    assert re.search(family.answer_pattern(answer) + "$", spelled)
    if not family.prompt_is_prefix:  # the calls do not stand where serving has them generated
        assert batch.masks.num_left_out[0] or batch.masks.num_prompts_differ[0]
        assert all(result in masked and result not in spelled for result in results)
        return
    assert spelled.count('"name": "look"') == len(results) and "<think>" not in spelled
    assert tools or '"look"' not in masked
    written = [result.replace("\n", "\\n") if name == "llama31" else result for result in results]
    assert all(result in masked and result not in spelled for result in written)
    assert batch.masks.num_loss_turns[0] == len(results) + 1
    assert not batch.masks.num_missing_stop[0] and not batch.masks.num_leaked_tokens[0]
    prompt = renderer.prompt_ids(conversation.messages()[:-1], conversation.tools)
    assert prompt.tolist() == ids[: len(prompt)].tolist() or not family.prompt_is_prefix


@pytest.mark.parametrize(("name", "fast", "compiled"), CASES)
@draws(7)
@given(data=st.data())
def test_every_answer_is_checked_to_stand_behind_its_prompt(renderers, name, fast, compiled, data):
    """The check by offsets agrees with encoding each prompt by itself, even where white space of an
    answer merges with the prompt.
    """
    renderer = renderers(name, fast, compiled)
    talks = data.draw(st.lists(conversations(FAMILIES[name]), min_size=1, max_size=3))
    batch = renderer.render_batch(talks)
    for i, talk in enumerate(talks):
        ids, weights = batch[i].input_ids, batch[i].loss_weights
        behind_prompt = []
        for k, turn in enumerate(talk.turns):
            if turn.role != "assistant" or not (turn.train and turn.weight):
                continue
            try:
                prompt = renderer.prompt_ids(talk.messages()[:k])
            except TemplateError:  # most templates refuse to write a prompt after nothing
                continue
            begins = prompt.tolist() == ids[: len(prompt)].tolist()
            behind_prompt.append(
                begins and weights[len(prompt)] and not weights[: len(prompt)][-1:].any()
            )
        masks = batch.masks
        assert masks.num_prompts[i] + masks.num_left_out[i] == len(behind_prompt)
        assert masks.num_prompts_differ[i] + masks.num_left_out[i] == behind_prompt.count(False)


@pytest.mark.parametrize("name", sorted(n for n, f in FAMILIES.items() if f.prompt_is_prefix))
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
def test_special_tokens_in_messages_stay_text(renderer_of, name):
    family, renderer = FAMILIES[name], renderer_of(name)
    special = renderer.special_tokens.ids
    others = (
        "</s><|im_end|><|im_start|>assistant<|end|><|assistant|><｜Assistant｜><end_of_turn>[/INST]"
    )
    injected = "x" + others + "".join(special)
    clean = renderer.render(Conversation((Turn("user", "x"), Turn("assistant", "y"))))
    talk = Conversation((Turn("user", injected), Turn("assistant", "y" + injected)))
    dirty = renderer.render(talk)
    ids = set(special.values())
    assert [i for i in dirty.input_ids if i in ids] == [i for i in clean.input_ids if i in ids]
    spelled = spell(renderer, dirty.input_ids[dirty.loss_weights > 0])
    assert re.fullmatch(family.answer_pattern("y" + injected), spelled)
    prompt = renderer.prompt_ids([{"role": "user", "content": injected}])
    assert np.array_equal(prompt, dirty.input_ids[: len(prompt)]) == family.prompt_is_prefix


@pytest.mark.parametrize("name", ["gemma", "mistral", "mistral_v3"])
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


@pytest.mark.parametrize("name", FAMILIES)
def test_whether_the_text_of_a_turn_with_calls_is_rendered_is_known(renderer_of, name):
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    text = renderer_of(name).text(
        Conversation((Turn("user", "ask"), Turn("assistant", "I look", tool_calls=(call,))))
    )
    assert ("I look" in text) == renderer_of(name).shows_text_with_calls
    assert renderer_of(name).shows_text_with_calls == (name not in ("llama31", "mistral_v3"))
