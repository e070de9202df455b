"""Thoughts of rows are trained where the template shows them, and rows without thoughts on a base
that thinks stop with the argument to set.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.core.conversation import Conversation, Turn
from pipelines.data.convert.row_formats import to_conversation
from tests.trials.rendered_rows import (
    OFF,
    ON,
    TEMPLATES,
    THINKING,
    audited,
    renderer_of,
    row_of,
    shown,
    tables_of,
    talk,
)

pytestmark = pytest.mark.trials
QWEN3 = (TEMPLATES / "qwen3.jinja").read_text()


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_rows_thought_is_written_where_the_template_shows_it_and_trained(key: str) -> None:
    answer = {"role": "assistant", "content": "4", key: "two and two make four"}
    row = {"messages": [{"role": "user", "content": "What is 2+2?"}, answer]}
    renderer = renderer_of(QWEN3, ordinary=THINKING)
    assert shown(renderer, to_conversation(row)) == (
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
        "[[<think>\ntwo and two make four\n</think>\n\n4<|im_end|>]]\n"
    )
    # The same row with the thought in the text.
    inside = talk("What is 2+2?", "<think>\ntwo and two make four\n</think>\n\n4")
    assert shown(renderer, inside) == shown(renderer, to_conversation(row))


@pytest.mark.parametrize("key", ["reasoning", "thinking", "reasoning_content"])
def test_a_thought_goes_to_the_key_that_the_template_reads(key: str) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:{% if m.KEY and loop.last %}"
        "({{ m.KEY }}){% endif %}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    ).replace("KEY", key)
    renderer = renderer_of(template)
    last = talk("a", "b", "c", "d", reasoning="hm")
    text = "<|im_start|>user:a<|im_end|><|im_start|>assistant:[[b<|im_end|>]]"
    text += "<|im_start|>user:c<|im_end|><|im_start|>assistant:[[(hm)d<|im_end|>]]"
    assert shown(renderer, last) == text
    served = renderer.prompt_ids([*last.messages(), {"role": "user", "content": "e"}])
    assert "(hm)" not in renderer.decode(served)  # the template shows it in the last turn only


def test_a_thought_that_no_turn_shows_costs_its_row(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    )
    batch = renderer_of(template).render_batch([talk("a", "b", reasoning="hm"), talk("a", "b")])
    assert list(batch.errors) == [0] and "does not show the thought" in batch.errors[0]


def test_thoughts_of_earlier_answers_that_the_template_drops_are_counted(tmp_path: Path) -> None:
    renderer = renderer_of(QWEN3, ordinary=THINKING)
    turns = talk("a", "b", "c", "d", reasoning="new").turns
    earlier = Turn("assistant", "b", reasoning="old")
    conversation = Conversation((turns[0], earlier, *turns[2:]))
    assert "old" not in shown(renderer, conversation)
    assert "[[<think>\nnew\n</think>\n\nd<|im_end|>]]" in shown(renderer, conversation)
    problems, notes = audited(renderer, tmp_path, [row_of(conversation)])
    assert not problems and "leaves out 1 of 2 thoughts" in notes[0]


OPENS = """\
{%- for m in messages -%}{%- set c = m.content -%}{%- if m.role == 'assistant' -%}
{%- set r = '' -%}{%- if '</think>' in c -%}
{%- set r = c.split('</think>')[0].split('<think>')[-1].strip() -%}
{%- set c = c.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if KEEPS or loop.last -%}{{- '<think>\\n' + r + '\\n</think>\\n\\n' -}}{%- endif -%}
{{- c + '<|im_end|>\\n' -}}
{%- else -%}{{- '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}{%- else -%}{{- '<think>\\n' -}}{%- endif -%}{%- endif -%}
"""
KEEPS, STRIPS = OPENS.replace("KEEPS", "true"), OPENS.replace("KEEPS", "false")
FIXED = OPENS.replace("KEEPS", "true").replace("enable_thinking is false", "false")
ROWS = [row_of(talk(f"q{i}", f"It is {i}.")) for i in range(3)]


@pytest.mark.parametrize(
    ("template", "how"),
    [(KEEPS, "opens <think>"), (QWEN3, "leaves room for <think>")],
    ids=["opened", "inserted"],
)
def test_plain_answers_on_a_base_that_thinks_stop_and_the_way_out_is_named(
    template: str, how: str, tmp_path: Path
) -> None:
    renderer = renderer_of(template, ordinary=THINKING)
    assert shown(renderer, to_conversation(ROWS[0])).endswith(
        "</think>\n\n[[It is 0.<|im_end|>]]\n"
    )
    ((problem,), notes) = audited(renderer, tmp_path, ROWS)
    assert f"generation prompt of the base's chat template {how}" in problem
    assert "100.0% of the answers have no thought" in problem and not notes
    assert "set data.template_arguments: {enable_thinking: false} (first: row 0)" in problem
    fixed = renderer_of(template, ordinary=THINKING, arguments=OFF)
    assert audited(fixed, tmp_path, ROWS) == ([], [])
    assert shown(fixed, to_conversation(ROWS[0])).endswith("</think>\n\n[[It is 0.<|im_end|>]]\n")
    # Rows with thoughts need no argument.
    thoughts = [row_of(talk("q", f"<think>\nhm {i}\n</think>\n\nyes")) for i in range(3)]
    assert audited(renderer, tmp_path, thoughts) == ([], [])


def test_a_base_that_always_opens_a_thought_is_named_too(tmp_path: Path) -> None:
    ((problem,), _) = audited(renderer_of(FIXED, ordinary=THINKING), tmp_path, ROWS)
    assert "opens <think>" in problem and "template_arguments" not in problem
    assert "give the answers their thoughts" in problem and "data.chat_template" in problem


def test_a_base_that_thinks_by_default_without_a_trace_in_the_text_stops_too(
    tmp_path: Path,
) -> None:
    """SmolLM3's: the template writes no thought in either mode, the prompt for plain answers has an
    empty one.
    """
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and enable_thinking is defined and not enable_thinking %}"
        "<think>\n\n</think>\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n"
        "{% endif %}"
        "{% endif %}"
    )
    ((problem,), _) = audited(renderer_of(template, ordinary=THINKING), tmp_path, ROWS)
    assert "leaves room for <think>" in problem and "{enable_thinking: false}" in problem
    for arguments in (OFF, ON):
        renderer = renderer_of(template, ordinary=THINKING, arguments=arguments)
        assert audited(renderer, tmp_path, ROWS) == ([], [])
    thoughts = [row_of(talk("q", f"<think>\nhm {i}\n</think>\n\nyes")) for i in range(3)]
    assert audited(renderer_of(template, ordinary=THINKING), tmp_path, thoughts) == ([], [])


def test_an_empty_thought_is_trained_only_where_the_recipe_asks_for_thoughts(
    tmp_path: Path,
) -> None:
    for compiled in (True, False):
        renderer = renderer_of(QWEN3, ordinary=THINKING, arguments=ON, compiled=compiled)
        assert shown(renderer, talk("a", "b")) == (
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
            "[[<think>\n\n</think>\n\nb<|im_end|>]]\n"
        )
    assert audited(renderer, tmp_path, ROWS) == ([], [])


def test_earlier_answers_that_stand_behind_another_prompt_are_not_trained(tmp_path: Path) -> None:
    """Serving sends an empty thought before every answer, and the template keeps only the last."""
    conversation = talk("a", "b", "c", "d")
    for compiled in (True, False):
        renderer = renderer_of(STRIPS, ordinary=THINKING, arguments=OFF, compiled=compiled)
        assert shown(renderer, conversation) == (
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
            "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
            "[[d<|im_end|>]]\n"
        )
    problems, notes = audited(renderer, tmp_path, [row_of(conversation)])
    assert not problems and "1 answers before the last are not trained" in notes[0]


def test_a_row_whose_trained_answers_are_all_left_out_is_rejected_with_the_reason(
    tmp_path: Path,
) -> None:
    renderer = renderer_of(STRIPS, ordinary=THINKING, arguments=OFF)
    row = row_of(talk("a", "b", "c", "d"))
    row["messages"][3]["train"] = False
    (table,) = tables_of(renderer, tmp_path, [row])
    assert "stand behind another text" in table["reason"][0].as_py()


@pytest.mark.parametrize("opens", [True, False])
def test_thoughts_between_tags_of_any_form_are_known_by_a_probe(
    opens: bool, tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:{% if m.role == 'assistant' %}"
        "<|a|>musing<|b|>{{ m.reasoning_content or '' }}<|c|>musing<|b|><|a|>reply<|b|>"
        "{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:OPENS{% endif %}"
    ).replace("OPENS", "<|a|>musing<|b|>" if opens else "")
    renderer = renderer_of(template, "<|im_start|> <|im_end|> <|a|> <|b|> <|c|>")
    ((problem,), _) = audited(renderer, tmp_path, ROWS)
    how = "opens a thought" if opens else "leaves room for a thought"
    assert f"chat template {how}, and 100.0% of the answers have no thought" in problem
    before, trained = "<|a|>musing<|b|>", "hm<|c|>musing<|b|><|a|>reply<|b|>d<|im_end|>"
    text = f"{before}[[{trained}]]" if opens else f"[[{before}{trained}]]"
    assert shown(renderer, talk("c", "d", reasoning="hm")).endswith(text)
