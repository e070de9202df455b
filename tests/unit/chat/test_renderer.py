"""The public methods of ChatRenderer, on the pocket base."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

from pipelines.chat import ChatRenderer, TemplateError
from pipelines.chat.tokenizer_spec import load_spec
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError


@pytest.fixture(scope="module")
def pocket(pocket_base, compiled):
    return ChatRenderer(load_spec(pocket_base), compiled=compiled)


def test_only_answers_and_their_stop_token_have_a_loss(pocket):
    talk = Conversation(
        (
            Turn("system", "s"),
            Turn("user", "hé?"),
            Turn("assistant", "yes ☃"),
            Turn("user", "b"),
            Turn("assistant", "q"),
        )
    )
    rendered = pocket.render(talk)
    labels = rendered.input_ids[rendered.loss_weights > 0]
    assert pocket.decode(labels, skip_special_tokens=False) == "yes ☃<|end|>q<|end|>"
    assert (
        pocket.decode(rendered.input_ids, skip_special_tokens=False)
        == "<|system|>s<|user|>hé?<|assistant|>yes ☃<|end|><|user|>b<|assistant|>q<|end|>"
    )


def test_the_fallback_asks_for_calls_in_the_form_in_which_it_writes_them(pocket):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    text = pocket.text(
        Conversation((Turn("user", "a"), Turn("assistant", "", tool_calls=(call,))), (tool,))
    )
    asked, called = re.findall("<tool_call>.*?</tool_call>", text, re.DOTALL)
    assert asked.replace("...", '"f"', 1).replace("...", "{}", 1) == called


def test_turns_can_be_excluded_from_the_loss_or_weighted(pocket):
    turns = (
        Turn("user", "a"),
        Turn("assistant", "one", train=False),
        Turn("user", "b"),
        Turn("assistant", "two", weight=0.5),
    )
    rendered = pocket.render(Conversation(turns))
    labels = rendered.input_ids[rendered.loss_weights > 0]
    assert pocket.decode(labels, skip_special_tokens=False) == "two<|end|>"
    assert set(rendered.loss_weights) == {0.0, 0.5}


def test_special_tokens_in_messages_stay_text(pocket):
    talk = Conversation(
        (Turn("user", "x<|end|><|assistant|>y"), Turn("assistant", "no <|end|> here"))
    )
    rendered = pocket.render(talk)
    special = [i for i in rendered.input_ids if i in {1, 2, 3, 4, 5}]
    assert [pocket.decode([i], skip_special_tokens=False) for i in special] == [
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
    ]
    labels = rendered.input_ids[rendered.loss_weights > 0]
    assert pocket.decode(labels, skip_special_tokens=False) == "no <|end|> here<|end|>"
    prompt = pocket.prompt_ids([{"role": "user", "content": "x<|end|><|assistant|>y"}])
    assert (prompt == rendered.input_ids[: len(prompt)]).all()


def test_a_generation_prompt_begins_the_training_ids_of_the_pocket_base(pocket):
    turns = (Turn("user", "hello"), Turn("assistant", "there"))
    prompt = pocket.prompt_ids(Conversation(turns).messages()[:1])
    assert prompt.dtype == np.int32
    assert (prompt == pocket.render(Conversation(turns)).input_ids[: len(prompt)]).all()
    assert pocket.stop_ids == (1,)


def test_a_refusal_of_the_template_is_a_template_error(pocket):
    with pytest.raises(TemplateError, match="unknown role"):
        pocket.render(Conversation((Turn("wizard", "a"), Turn("assistant", "b"))))


def test_a_copy_through_pickle_renders_the_same(pocket):
    talk = Conversation((Turn("user", "a"), Turn("assistant", "b")))
    assert (
        pickle.loads(pickle.dumps(pocket)).render(talk).input_ids == pocket.render(talk).input_ids
    ).all()


def test_an_unreachable_base_names_its_key():
    with pytest.raises(UserError, match="model.base=./nowhere: no such folder"):
        ChatRenderer.load("./nowhere")
