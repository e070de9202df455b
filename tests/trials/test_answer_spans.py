"""What serving leaves to the model is trained, and nothing else of a row, on templates that were
once trained wrong without a word.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError
from tests.trials.rendered_rows import (
    TEMPLATES,
    THINKING,
    audited,
    renderer_of,
    row_of,
    shown,
    talk,
)
from tests.unit.chat.tokenizer_kinds import spell

pytestmark = pytest.mark.trials
QWEN3 = (TEMPLATES / "qwen3.jinja").read_text()
MISTRAL_V3 = (TEMPLATES / "mistral_v3.jinja").read_text()

# -- headers, ends and calls -----------------------------------------------------------------------

CHANNELS = """\
{%- for m in messages -%}{%- if m.role == 'assistant' -%}
{%- if m.thinking and loop.last -%}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}{%- endif -%}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content -}}
{%- if loop.last -%}{{- '<|return|>' -}}{%- else -%}{{- '<|end|>' -}}{%- endif -%}
{%- else -%}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' -}}{%- endif -%}
{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""


def test_a_channel_header_is_trained_and_so_is_the_end_of_every_answer(tmp_path: Path) -> None:
    special = "<|start|> <|channel|> <|message|> <|end|> <|return|>"
    for compiled in (True, False):
        renderer = renderer_of(CHANNELS, special, eos="<|return|>", compiled=compiled)
        ask = "<|start|>user<|message|>{}<|end|><|start|>assistant"
        final = "[[<|channel|>final<|message|>{}]]"
        two = talk("a", "bee", "c", "dee")
        assert shown(renderer, two) == (
            ask.format("a") + final.format("bee<|end|>") + ask.format("c")
            + final.format("dee<|return|>")
        )  # fmt: skip
        thought = talk("a", "bee", reasoning="hm")
        assert shown(renderer, thought) == (
            ask.format("a") + "[[<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
            "<|channel|>final<|message|>bee<|return|>]]"
        )
    assert audited(renderer, tmp_path, [row_of(two), row_of(thought)]) == ([], [])
    ends = [renderer.special_tokens.ids[token] for token in ("<|return|>", "<|end|>")]
    assert {*ends} <= {*renderer.stop_ids}


NEXT_HEADER = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_the_next_turns_header_ends_an_answer_where_the_template_writes_no_end(
    tmp_path: Path,
) -> None:
    """Serving stops there. A conversation's last answer gets the header too."""
    for compiled in (True, False):
        renderer = renderer_of(
            NEXT_HEADER, "<|user|> <|assistant|> <|eos|>", eos="<|eos|>", compiled=compiled
        )
        assert shown(renderer, talk("a", "b", "c", "d")) == (
            "<|user|>\na<|assistant|>[[\nb<|user|>]]\nc<|assistant|>[[\nd<|user|>]]"
        )
    assert renderer.special_tokens.ids["<|user|>"] in renderer.stop_ids
    rows = [row_of(talk("a", "b", "c", "d")), row_of(talk("a", "b"))]
    assert audited(renderer, tmp_path, rows) == ([], [])


CALL = {"type": "function", "function": {"name": "find", "arguments": {"q": "x"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds.",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
    },
}
CALLS_FIRST = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' -}}"
    "{%- for c in m.tool_calls or [] -%}{{- '<call>' + (c.function | tojson) + '</call>' -}}"
    "{%- endfor -%}{{- (m.content or '') + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


@pytest.mark.parametrize("text", ["", "I look."])
def test_calls_that_a_template_writes_before_the_text_are_trained(text: str) -> None:
    calling = Turn("assistant", text, tool_calls=(CALL,))
    turns = (Turn("user", "Weather?"), calling, Turn("tool", "rain"), Turn("assistant", "Rain."))
    written = shown(renderer_of(CALLS_FIRST), Conversation(turns, (TOOL,)))
    call = '<call>{"name": "find", "arguments": {"q": "x"}}</call>'
    assert "<tool_call>" not in written  # the fallback for the tools asks for no other form
    assert f"<|im_start|>assistant\n[[{call}{text}<|im_end|>]]\n" in written
    assert written.endswith("<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n"
                            "[[Rain.<|im_end|>]]\n")  # fmt: skip


MISTRAL = (
    "[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS] <s> </s>"
)


def _asked(question: str, result: str, answer: str, call_id: str | None = None) -> list[Turn]:
    call = CALL | ({"id": call_id} if call_id else {})
    calling = Turn("assistant", "", tool_calls=(call,))
    return [Turn("user", question), calling, Turn("tool", result), Turn("assistant", answer)]


def test_tools_stand_before_the_question_where_calls_need_ids() -> None:
    renderer = renderer_of(MISTRAL_V3, MISTRAL, eos="</s>")
    for call_id, expected in ((None, "000000000"), ("call_1", "000000000"), ("A1b2C3d4E", None)):
        turns = _asked("Weather?", "rain", "Rain.", call_id)
        text = shown(renderer, Conversation(tuple(turns), (TOOL,)))
        number = expected or call_id
        assert text.startswith('[AVAILABLE_TOOLS] [{"type": "function"')
        assert text.endswith(
            '[/AVAILABLE_TOOLS][INST] Weather?[/INST][[[TOOL_CALLS] [{"name": "find", '
            f'"arguments": {{"q": "x"}}, "id": "{number}"}}]</s>]][TOOL_RESULTS] '
            f'{{"content": rain, "call_id": "{number}"}}[/TOOL_RESULTS][[ Rain.</s>]]'
        )


def test_answers_whose_tools_the_template_has_moved_on_are_not_trained(tmp_path: Path) -> None:
    """The template shows the tools at the last question, so earlier calls stand without them."""
    renderer = renderer_of(MISTRAL_V3, MISTRAL, eos="</s>")
    turns = [*_asked("Weather?", "rain", "Rain."), *_asked("And now?", "sun", "Sun.")]
    text = shown(renderer, Conversation(tuple(turns), (TOOL,)))
    before, tools, behind = text.partition("[AVAILABLE_TOOLS]")
    assert tools and "[[" not in before
    assert behind.count("[[") == 2 and "[[ Sun.</s>]]" in behind
    _, notes = audited(renderer, tmp_path, [row_of(Conversation(tuple(turns), (TOOL,)))])
    assert "2 answers before the last are not trained" in notes[0]


def test_a_result_that_becomes_part_of_a_user_turn_does_not_pull_the_tools_behind_its_call() -> (
    None
):
    template = (
        "{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}"
        "{%- for m in messages -%}{%- if m.role == 'user' -%}"
        "{%- if tools and m == users[-1] -%}[TOOLS]{{ tools | tojson }}[/TOOLS]{%- endif -%}"
        "[INST]{{ m.content }}[/INST]{%- elif m.role == 'assistant' -%}{{ m.content }}</s>"
        "{%- else -%}{{ raise_exception('no such role') }}{%- endif -%}{%- endfor -%}"
    )
    renderer = renderer_of(template, "[INST] [/INST] [TOOLS] [/TOOLS] </s>", eos="</s>")
    turns = _asked("Weather?", "rain", "Rain.")
    text = shown(renderer, Conversation(tuple(turns), (TOOL,)))
    assert text.index('"description": "Finds."') < text.index("Weather?") < text.index("[[")
    assert text.count("]]") == 2 and text.endswith("[[Rain.</s>]]")


# -- parts of answers, and templates that write no text --------------------------------------------


@pytest.mark.parametrize(
    ("content", "masked", "expected"),
    [
        ("Let me think. 4", ((0, 13),), "Let me think.[[ 4<|im_end|>]]"),
        ("wrong right", ((0, 5),), "wrong[[ right<|im_end|>]]"),
        ("right wrong", ((6, 11),), "[[right ]]wrong[[<|im_end|>]]"),
        ("one two one", ((4, 7), (8, 11)), "[[one]] two[[ ]]one[[<|im_end|>]]"),
        ("all of it", ((0, 9),), "all of it[[<|im_end|>]]"),
    ],
)
def test_masked_parts_of_an_answer_have_no_loss(
    content: str, masked: tuple[tuple[int, int], ...], expected: str
) -> None:
    template = (TEMPLATES / "chatml.jinja").read_text()
    text = shown(renderer_of(template), talk("What is 2+2?", content, masked=masked))
    assert text.endswith(f"<|im_start|>assistant\n{expected}\n")


def test_a_masked_part_is_found_in_a_trimmed_answer_and_behind_a_thought() -> None:
    template = (TEMPLATES / "llama3.jinja").read_text()
    renderer = renderer_of(
        template, "<|start_header_id|> <|end_header_id|> <|eot_id|>", eos="<|eot_id|>"
    )
    text = shown(renderer, talk("q", "\n wrong right \n", masked=((0, 7),)))
    assert text.endswith("\n\nwrong[[ right<|eot_id|>]]")
    qwen = renderer_of(QWEN3, ordinary=THINKING)
    text = shown(qwen, talk("q", "wrong right", masked=((0, 5),), reasoning="hm"))
    assert text.endswith("[[<think>\nhm\n</think>\n\n]]wrong[[ right<|im_end|>]]\n")


def test_masked_parts_of_a_text_that_the_template_rewrites_cost_the_row() -> None:
    upper = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content | replace('!', '?') }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    renderer = renderer_of(upper)
    conversations = [talk("q", "wrong! right", masked=((0, 5),)), talk("q", "wrong! right")]
    batch = renderer.render_batch(conversations)
    assert list(batch.errors) == [0] and "does not write an answer as it is" in batch.errors[0]


PARTS = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' -}}{%- for p in m.content -%}"
    "{%- if p.type == 'text' -%}{{- p.text -}}{%- endif -%}{%- endfor -%}{{- '<|im_end|>' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def test_a_template_that_reads_parts_only_gets_texts_as_parts() -> None:
    for compiled in (True, False):
        renderer = renderer_of(PARTS, compiled=compiled)
        assert shown(renderer, talk("hello", "world")) == (
            "<|im_start|>user\nhello<|im_end|><|im_start|>assistant\n[[world<|im_end|>]]"
        )
        prompt = renderer.prompt_ids([{"role": "user", "content": "hello"}])
        assert spell(renderer, prompt) == (
            "<|im_start|>user\nhello<|im_end|><|im_start|>assistant\n"
        )


@pytest.mark.parametrize(
    ("shown_role", "hidden"),
    [("nobody", "user and assistant"), ("user", "assistant"), ("assistant", "user")],
)
def test_a_template_that_leaves_texts_out_is_refused(shown_role: str, hidden: str) -> None:
    template = PARTS.replace("m.content", f"(m.content if m.role == '{shown_role}' else [])")
    with pytest.raises(UserError, match=f"it writes no text of {hidden} messages"):
        renderer_of(template)
