"""Conversations for which a popular stack trains on the wrong tokens, or on none."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.chat import ChatRenderer, TemplateError, TokenizerSpec
from pipelines.core.conversation import Conversation, Turn
from tests.unit.chat.tokenizer_kinds import spell

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "d", "parameters": {"type": "object"}},
}


def labels(renderer: ChatRenderer, conversation: Conversation) -> str:
    """The text of the tokens with a loss."""
    rendered = renderer.render(conversation)
    return spell(renderer, rendered.input_ids[rendered.loss_weights > 0])


@pytest.fixture
def render_with(byte_level, compiled):
    """A renderer of a template's source, on the shared tokenizer."""

    def make(template: str, **named: str) -> ChatRenderer:
        spec = TokenizerSpec(byte_level.to_str(), template, named)
        return ChatRenderer(spec, compiled=compiled)

    return make


def talk(*turns: tuple[str, str], tools=()) -> Conversation:
    return Conversation(tuple(Turn(role, text) for role, text in turns), tools)


def test_a_first_answer_of_one_token_ends_after_it(renderer_of, render_with):
    """transformers finds no end of such an answer and trains on everything after it."""
    conversation = talk(("assistant", "4"), ("user", "the secret"), ("assistant", "ok"))
    assert labels(renderer_of("greeting"), conversation) == "4<|im_end|>ok<|im_end|>"
    bare = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    assert labels(render_with(bare), conversation) == "4ok"


def test_a_template_without_generation_blocks_is_masked_correctly(renderer_of):
    assert labels(renderer_of("chatml"), talk(("user", "a"), ("assistant", "b"))) == "b<|im_end|>"


def test_a_token_merged_across_the_start_of_an_answer_has_no_loss(renderer_of):
    """`is 4` + `2`: the full render has the token `42`, the prompt alone has `4`."""
    renderer = renderer_of("joined")
    conversation = talk(("user", "the answer is 4"), ("assistant", "2 and 2"))
    rendered = renderer.render(conversation)
    prompt = renderer.prompt_ids(conversation.messages()[:1])
    assert not np.array_equal(prompt, rendered.input_ids[: len(prompt)])
    masked = renderer.decode(rendered.input_ids[rendered.loss_weights == 0])
    assert masked == "the answer is 42" and labels(renderer, conversation) == " and 2</s>"


def test_a_stop_token_outside_the_generation_block_has_a_loss_too(render_with):
    renderer = render_with(
        "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    assert labels(renderer, talk(("user", "a"), ("assistant", "b"))) == "b<|im_end|>"
    spelled = labels(renderer, talk(("user", "a"), ("assistant", "b<|im_end|>")))
    assert spelled == "b<|im_end|><|im_end|>"


def test_generation_blocks_that_include_the_prompt_are_not_trusted(render_with):
    renderer = render_with(
        "{% for m in messages %}{% generation %}"
        "{{ '<|im_start|>' + m.role + ':' + m.content + '<|im_end|>' }}"
        "{% endgeneration %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
    )
    assert labels(renderer, talk(("user", "a"), ("assistant", "b"))) == "b<|im_end|>"


def test_generation_blocks_that_include_the_next_question_are_not_trusted(render_with):
    renderer = render_with(
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>"
        "{% generation %}{{ m.content }}<|im_end|>"
        "{% if not loop.last %}<|user|>{{ messages[loop.index].content }}{% endif %}"
        "{% endgeneration %}{% elif loop.first %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    conversation = talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert labels(renderer, conversation) == "b<|im_end|>d<|im_end|>"


def test_a_header_that_the_generation_prompt_lacks_has_a_loss(render_with):
    """Serving leaves it to the model."""
    renderer = render_with(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ':' + m.content + '<|im_end|>' }}"
        "{% endfor %}"
    )
    expected = "<|im_start|>assistant:b<|im_end|>"
    assert labels(renderer, talk(("user", "a"), ("assistant", "b"))) == expected


def test_a_thought_has_a_loss_in_the_last_turn_and_an_inserted_thought_never(
    renderer_of, reference_of
):
    renderer = renderer_of("qwen_thinking")
    thought = "<think>\nhm\n</think>\n\nyes"
    last = talk(
        ("user", "a"), ("assistant", "<think>old</think>b"), ("user", "c"), ("assistant", thought)
    )
    assert labels(renderer, last) == f"b<|im_end|>{thought}<|im_end|>"
    plain = talk(
        ("user", "a"), ("assistant", "<think>old</think>b"), ("user", "c"), ("assistant", "yes")
    )
    assert labels(renderer, plain) == "b<|im_end|>yes<|im_end|>"
    for conversation in (last, plain):
        reference = reference_of("qwen_thinking").apply_chat_template(
            conversation.messages(), return_dict=False
        )
        assert list(renderer.render(conversation).input_ids) == list(reference)


THOUGHT = "<think>\nhm\n</think>\n\n"
CALLED = '\n<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", CALLED),
        ("I look", f"I look{CALLED}"),
        ("\nI look", f"I look{CALLED}"),
        (f"{THOUGHT}I look", f"{THOUGHT}I look{CALLED}"),
        (THOUGHT, f"{THOUGHT}{CALLED}"),
        ("<think>\n\n</think>\n\nI look", f"I look{CALLED}"),
    ],
)
def test_a_thought_that_a_template_inserts_before_a_tool_call_has_no_loss(
    renderer_of, content, expected
):
    """If a conversation ends in a call, the template writes an empty thought, unless the turn has
    one.
    """
    conversation = Conversation(
        (Turn("user", "a"), Turn("assistant", content, tool_calls=(CALL,))), (TOOL,)
    )
    text = renderer_of("qwen_thinking").text(conversation)
    assert text.count("<think>") == 1
    assert labels(renderer_of("qwen_thinking"), conversation) == expected


def test_an_inserted_thought_has_no_loss_when_the_template_trims_the_answer(renderer_of):
    """The template drops the line break of `\\n2`, so the answer is not in the text as it was."""
    for answer, expected in (
        ("\n2 ", "2 <|im_end|>"),
        ("\n\n2", "2<|im_end|>"),
        ("\n<think>\n\n</think>\n2", "2<|im_end|>"),
    ):
        conversation = talk(("user", "a"), ("assistant", answer))
        assert labels(renderer_of("qwen_thinking"), conversation) == expected


@pytest.mark.parametrize("family", ["chatml", "qwen_thinking", "llama2", "gemma", "pocket"])
def test_tool_calls_have_a_loss_and_results_do_not(renderer_of, family):
    """Templates that know no tools get calls, results and the list of tools as text."""
    renderer = renderer_of(family)
    turns = (
        Turn("user", "what is up?"),
        Turn("assistant", "", tool_calls=(CALL,)),
        Turn("tool", "a bird"),
        Turn("assistant", "a bird"),
    )
    conversation = Conversation(turns, (TOOL,))
    text = labels(renderer, conversation)
    assert '"name": "look"' in text and '"at": "sky"' in text and text.count("a bird") == 1
    rendered = renderer.render(conversation)
    masked = renderer.decode(rendered.input_ids[rendered.loss_weights == 0])
    assert "a bird" in masked and '"description": "d"' in masked and '"at"' not in masked
    prompt = renderer.prompt_ids(conversation.messages()[:3], conversation.tools)
    assert np.array_equal(prompt, rendered.input_ids[: len(prompt)])


def test_the_error_for_a_refused_conversation_has_the_templates_own_message(renderer_of):
    with pytest.raises(TemplateError, match="user and assistant must take turns"):
        renderer_of("llama2").render(talk(("assistant", "a"), ("user", "b"), ("assistant", "c")))


MARKED = ["a\ufdd0b", "\ufdd2\ue000x\ufdd3", "\ufdd0x\ufdd1"]


@pytest.mark.parametrize("family", ["chatml", "commandr", "chatml_marked", "pocket"])
@pytest.mark.parametrize("content", MARKED)
@pytest.mark.parametrize("marked_first", [True, False])
def test_a_row_that_contains_marks_is_refused_and_changes_no_other(
    render_with, template_of, family, content, marked_first
):
    """In either order: a new renderer compiles its template when it meets a shape of rows."""
    renderer = render_with(template_of(family), bos_token="<s>", eos_token="</s>")
    clean = talk(("user", "x"), ("assistant", "b"))
    function = {"name": "f", "arguments": content}
    call = Turn("assistant", "", tool_calls=({"type": "function", "function": function},))
    marked = [
        talk(("user", content), ("assistant", "b")),
        talk(("user", "x"), ("assistant", content)),
        Conversation((Turn("user", "x"), call)),
    ]
    order = [*marked, clean] if marked_first else [clean, *marked]
    batch = renderer.render_batch(order)
    assert len(batch.errors) == 3 and all(
        "noncharacter" in error for error in batch.errors.values()
    )
    assert batch.errors.keys() == {i for i, row in enumerate(order) if row is not clean}
    position, alone = order.index(clean), renderer.render(clean)
    assert np.array_equal(batch[position].input_ids, alone.input_ids)
    assert np.array_equal(batch[position].loss_weights, alone.loss_weights)


@pytest.mark.parametrize("content", ["half \ud83d", "\udce9"])
def test_text_that_is_not_unicode_costs_its_row_and_not_its_batch(renderer_of, content):
    for family in ("chatml", "commandr", "pocket"):
        batch = renderer_of(family).render_batch(
            [talk(("user", content), ("assistant", "b")), talk(("user", "a"), ("assistant", "b"))]
        )
        assert batch.errors.keys() == {0} and batch[1].num_loss_tokens
        with pytest.raises(TemplateError, match="not Unicode"):
            renderer_of(family).prompt_ids([{"role": "user", "content": content}])
