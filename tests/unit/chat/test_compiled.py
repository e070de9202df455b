"""The fast path: which conversations it takes, and that it changes nothing but the time."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.chat.loss_mask import LossMasks
from pipelines.core.conversation import Conversation, Turn
from tests.unit.chat.template_families import FAMILIES, conversations

COUNTS = [field.name for field in dataclasses.fields(LossMasks) if field.name != "weights"]


@pytest.mark.parametrize("name", FAMILIES)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_the_fast_path_gives_the_same_tokens_weights_and_counts(renderers, name, data):
    talks = data.draw(st.lists(conversations(FAMILIES[name]), min_size=1, max_size=4))
    quick, slow = (renderers(name, compiled=compiled) for compiled in (True, False))
    ours, theirs = quick.render_batch(talks), slow.render_batch(talks)
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert ours.weights.tolist() == theirs.weights.tolist()
    assert ours.offsets.tolist() == theirs.offsets.tolist() and ours.errors == theirs.errors
    for count in COUNTS:
        assert getattr(ours.masks, count).tolist() == getattr(theirs.masks, count).tolist()


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"commandr"}))
def test_plain_conversations_are_compiled(renderers, name):
    """All families but Command-R, whose template writes turns by a macro."""
    compiled = renderers(name).compiled.compiled_for(
        ["user", "assistant", "user", "assistant"], ["a", "b", "c", "d"]
    )
    assert compiled is not None


def test_a_macro_is_not_compiled(renderers):
    assert renderers("commandr").compiled.compiled_for(["user", "assistant"], ["a", "b"]) is None


def test_what_is_compiled_does_not_depend_on_earlier_rows(byte_level, template_of):
    """A row that the conditions exclude does not keep others of its shape off the fast path."""
    for first in ("<think>a</think>b", " \n", "plain"):
        renderer = ChatRenderer(
            TokenizerSpec(byte_level.to_str(), template_of("qwen_thinking"), {"eos_token": "</s>"})
        )
        renderer.render_batch([Conversation((Turn("user", "x"), Turn("assistant", first)))])
        assert renderer.compiled is not None
        assert renderer.compiled.compiled_for(["user", "assistant"], ["a", "b"]) is not None


def test_the_off_switch_survives_pickle_and_fastokens(renderers, compiled):
    renderer = renderers("chatml", compiled=compiled)
    copy, (fast, reason) = pickle.loads(pickle.dumps(renderer)), renderer.with_fastokens()
    assert reason is None and fast.fast
    assert all((each.compiled is not None) == compiled for each in (renderer, copy, fast))
    talk = Conversation((Turn("user", "a"), Turn("assistant", "b")))
    assert np.array_equal(copy.render(talk).input_ids, fast.render(talk).input_ids)
