"""What serving leaves to the model is trained, and nothing else of a row, on templates that were
once trained wrong without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.config.schema import AuditConfig, DataConfig, SourceConfig
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError
from pipelines.data.audit.answers import answer_notes, answer_problems
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.mask_checks import MaskChecks
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.tokenize import ChunkTokenizer
from pipelines.sources.source_files import find_files
from tests.unit.chat.tokenizer_kinds import LLAMA_WORDS, byte_level_bpe, spell

pytestmark = pytest.mark.trials
TEMPLATES = Path(__file__).resolve().parents[1] / "unit" / "chat" / "templates"
QWEN3 = (TEMPLATES / "qwen3.jinja").read_text()
MISTRAL_V3 = (TEMPLATES / "mistral_v3.jinja").read_text()
THINKING = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}


def renderer_of(
    template: str,
    special: str = "<|im_start|> <|im_end|>",
    ordinary: Sequence[str] = (),
    eos: str = "<|im_end|>",
    arguments: Mapping[str, Any] | None = None,
    compiled: bool = True,
) -> ChatRenderer:
    tokenizer = byte_level_bpe(LLAMA_WORDS, special.split(), ordinary)
    named = {"eos_token": eos}
    spec = TokenizerSpec(tokenizer.to_str(), template, named, arguments=arguments or {})
    return ChatRenderer(spec, compiled=compiled)


def shown(renderer: ChatRenderer, conversation: Conversation) -> str:
    """The text of a conversation's tokens, with the parts in the loss in [[ ]]."""
    rendered = renderer.render(conversation)
    trained, text = False, ""
    for token, weight in zip(rendered.input_ids, rendered.loss_weights, strict=True):
        if (weight > 0) != trained:
            trained = not trained
            text += "[[" if trained else "]]"
        text += spell(renderer, token[None])
    return text + ("]]" if trained else "")


def talk(*texts: str, **answer: Any) -> Conversation:
    """Questions and answers in turns; `answer` are fields of the last answer."""
    turns = [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    turns[-1] = Turn("assistant", texts[-1], **answer)
    return Conversation(tuple(turns))


def audited(
    renderer: ChatRenderer, folder: Path, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """The problems and the notes of these rows' answers."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [SourceConfig(path=str(folder / "rows.jsonl"))]
    config = DataConfig(sources=sources, row_tokens=1024, heldout_share=0)
    (chunk,) = cut_chunks(find_files(sources))
    checks = MaskChecks()
    for table in ChunkTokenizer(renderer, config).tables(0, chunk):
        checks.add(table, lambda _, row: f"row {row}")
    metadata = {"checks": checks.counts, "first_rows": {"checks": checks.first_rows}}
    metadata["thoughts"] = renderer.thought_facts
    return [*answer_problems(metadata, AuditConfig())], [*answer_notes(metadata)]


def messages_of(conversation: Conversation) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": conversation.messages()}
    return row | ({"tools": [*conversation.tools]} if conversation.tools else {})


# -- thoughts --------------------------------------------------------------------------------------


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
    problems, notes = audited(renderer, tmp_path, [messages_of(conversation)])
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
ROWS = [messages_of(talk(f"q{i}", f"It is {i}.")) for i in range(3)]


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
    thoughts = [messages_of(talk("q", f"<think>\nhm {i}\n</think>\n\nyes")) for i in range(3)]
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
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}"
        "{% endif %}"
    )
    ((problem,), _) = audited(renderer_of(template, ordinary=THINKING), tmp_path, ROWS)
    assert "leaves room for <think>" in problem and "{enable_thinking: false}" in problem
    for arguments in (OFF, ON):
        renderer = renderer_of(template, ordinary=THINKING, arguments=arguments)
        assert audited(renderer, tmp_path, ROWS) == ([], [])
    thoughts = [messages_of(talk("q", f"<think>\nhm {i}\n</think>\n\nyes")) for i in range(3)]
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
    problems, notes = audited(renderer, tmp_path, [messages_of(conversation)])
    assert not problems and "1 answers before the last are not trained" in notes[0]


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
    assert audited(renderer, tmp_path, [messages_of(two), messages_of(thought)]) == ([], [])
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
    rows = [messages_of(talk("a", "b", "c", "d")), messages_of(talk("a", "b"))]
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
    _, notes = audited(renderer, tmp_path, [messages_of(Conversation(tuple(turns), (TOOL,)))])
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


@pytest.mark.parametrize("shows", ["nothing", "questions", "answers"])
def test_a_template_that_leaves_texts_out_is_refused(shows: str) -> None:
    role = {"questions": "user", "answers": "assistant"}.get(shows, "nobody")
    template = PARTS.replace("m.content", f"(m.content if m.role == '{role}' else [])")
    with pytest.raises(UserError, match="writes no text of the messages"):
        renderer_of(template)
