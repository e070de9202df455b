"""The template and the arguments that a recipe chooses, and the date that templates print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.chat.default_templates import chosen_template, with_choice
from pipelines.config.schema import BUILT_IN_TEMPLATES, DataConfig
from pipelines.core.artifacts import TemplateChoice
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError

TALK = Conversation((Turn("user", "Hello"), Turn("assistant", "42")))
# Each writes a date before the first turn: as Llama-3.1's, as Llama-3.2's, and as gpt-oss's.
BODY = (
    "{%- for m in messages -%}{{- m.role + ': ' + m.content + '</s>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}"
)
DEFAULT_DATE = (
    "{%- if not date_string is defined -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}"
    "{{- date_string + '\\n' -}}"
)
OWN_DATE = (
    "{%- if not date_string is defined -%}{%- if strftime_now is defined -%}"
    "{%- set date_string = strftime_now('%d %b %Y') -%}{%- endif -%}{%- endif -%}"
    "{{- date_string + '\\n' -}}"
)
TODAY = "{{- strftime_now('%Y-%m-%d') + '\\n' -}}"


def config(**data: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": ["a.json"], **data})


@pytest.fixture
def spec(byte_level: Tokenizer) -> TokenizerSpec:
    return TokenizerSpec(byte_level.to_str(), BODY, {"bos_token": "<s>", "eos_token": "</s>"})


def first_line(spec: TokenizerSpec, template: str, **arguments: Any) -> str:
    """The line before the first turn, which training, the fast path and serving must share."""
    choice = TemplateChoice(template + BODY, None, arguments)
    lines = set()
    for compiled in (True, False):
        renderer = ChatRenderer(with_choice(spec, choice), compiled=compiled)
        prompt = renderer.prompt_ids([{"role": "user", "content": "Hello"}])
        for ids in (renderer.render(TALK).input_ids, prompt):
            lines.add(renderer.decode(ids, skip_special_tokens=False).partition("\n")[0])
    assert len(lines) == 1, lines
    return lines.pop()


def test_every_built_in_name_is_a_template_that_renders_an_answer(spec: TokenizerSpec) -> None:
    for name in BUILT_IN_TEMPLATES:
        renderer = ChatRenderer(with_choice(spec, chosen_template(config(chat_template=name))))
        rendered = renderer.render(TALK)
        answer = renderer.decode(rendered.input_ids[rendered.loss_weights > 0], False)
        assert answer.strip() == ("42<|im_end|>" if name == "chatml" else "42</s>")
        assert renderer.default_layout == ""


def test_chatml_needs_its_end_token(byte_level: Tokenizer, spec: TokenizerSpec) -> None:
    text = byte_level.to_str().replace("<|im_end|>", "<|other|>")
    bare = TokenizerSpec(text, BODY, spec.named_tokens)
    with pytest.raises(UserError, match=r"chatml: .*no token <\|im_end\|>.*alpaca"):
        with_choice(bare, chosen_template(config(chat_template="chatml")))


def test_a_files_content_is_the_template_whatever_its_path(tmp_path: Path) -> None:
    for name in ("a.jinja", "b.txt"):
        (tmp_path / name).write_text("\ufeff" + BODY, encoding="utf-8")
        choice = chosen_template(config(chat_template=str(tmp_path / name)))
        assert choice == TemplateChoice(BODY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; set a file with a Jinja template, or one of alpaca, chatml, inst"),
        (b"", "not a Jinja template"),
        (b"just words", "not a Jinja template"),
        (b'{"chat_template": "{% for m in messages %}"}', "a JSON file"),
        (b"\xff\xfe{%", "not UTF-8 text"),
    ],
)
def test_a_file_without_a_template_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "own.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"data.chat_template=.*{message}"):
        chosen_template(config(chat_template=str(path)))


def test_a_near_name_a_folder_and_a_template_in_place_of_a_path_are_named(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(BODY)
    with pytest.raises(UserError, match=r"did you mean .*own.jinja"):
        chosen_template(config(chat_template=str(tmp_path / "own.jinj")))
    with pytest.raises(UserError, match="a folder"):
        chosen_template(config(chat_template=str(tmp_path)))
    with pytest.raises(UserError, match="write the template to a file"):
        chosen_template(config(chat_template=BODY))


def test_a_template_that_cannot_be_used_is_named_by_its_recipe_key(spec: TokenizerSpec) -> None:
    for text in ("{% for m in messages %}", "{{ raise_exception('never') }}"):
        with pytest.raises(UserError, match="data.chat_template: its chat template cannot be"):
            ChatRenderer(with_choice(spec, TemplateChoice(text)))


@pytest.mark.parametrize(
    ("template", "date"),
    [(DEFAULT_DATE, "26 Jul 2024"), (OWN_DATE, "26 Jul 2024"), (TODAY, "2024-07-26")],
)
def test_a_printed_date_is_the_same_on_every_day(
    spec: TokenizerSpec, template: str, date: str
) -> None:
    assert first_line(spec, template) == date


@pytest.mark.parametrize(
    ("template", "given", "date"),
    [
        (DEFAULT_DATE, "a Monday", "a Monday"),
        (OWN_DATE, "30 Jun 2025", "30 Jun 2025"),
        (TODAY, "2025-06-30", "2025-06-30"),
        (TODAY, "30 June 2025", "2025-06-30"),
        (DEFAULT_DATE + TODAY, "30 Jun 2025", "30 Jun 2025"),
    ],
)
def test_date_string_sets_the_date(
    spec: TokenizerSpec, template: str, given: str, date: str
) -> None:
    assert first_line(spec, template, date_string=given) == date


def test_a_text_that_is_no_date_is_refused_where_the_template_formats_it(
    spec: TokenizerSpec,
) -> None:
    with pytest.raises(UserError, match=r"date_string='today'.*such as 2025-06-30"):
        first_line(spec, TODAY, date_string="today")


@pytest.mark.parametrize(
    ("template", "names"),
    [
        (BODY, "it reads no variable of a recipe"),
        (TODAY + BODY, "it reads date_string"),
        ("{% set think = think if think is defined else 1 %}" + BODY, "it reads think"),
        ("{% macro f() %}{{ effort }}{% endmacro %}{{ f() }}{{ level }}", "reads effort, level"),
        ("{% set tone = 'dry' %}{{ tone }}" + BODY, "it reads no variable"),
    ],
)
def test_an_argument_that_is_not_read_is_refused_with_those_that_are(
    spec: TokenizerSpec, template: str, names: str
) -> None:
    with pytest.raises(UserError, match=f"tone does nothing.*{names}"):
        with_choice(spec, TemplateChoice(template, None, {"tone": "warm"}))


def test_arguments_reach_the_fast_path_the_general_one_and_workers(spec: TokenizerSpec) -> None:
    import pickle

    template = "{% if tone is defined and tone is false %}{{- 'flat\\n' -}}{% endif %}"
    assert first_line(spec, template, tone=False) == "flat"
    renderer = ChatRenderer(
        with_choice(spec, TemplateChoice(template + BODY, None, {"tone": False}))
    )
    worker = pickle.loads(pickle.dumps(renderer))
    assert worker.text(TALK) == renderer.text(TALK)
    assert worker.template == renderer.template


def test_a_template_that_prints_a_date_takes_the_fast_path(spec: TokenizerSpec) -> None:
    renderer = ChatRenderer(with_choice(spec, TemplateChoice(TODAY + BODY)))
    assert renderer.compiled is not None
    assert renderer.compiled.compiled_for(["user", "assistant"], ["Hello", "42"]) is not None
