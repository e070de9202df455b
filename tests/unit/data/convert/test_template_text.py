"""Text of chat templates in messages: tokens of all makers, and what only looks like one."""

from __future__ import annotations

import pytest

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.data.convert.template_text import TemplateText
from tests.unit.chat.template_families import FAMILIES

CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


@pytest.fixture(scope="module")
def template_text() -> TemplateText:
    """On a base whose tokenizer has the tokens of ChatML and, as ordinary tokens, tags of tools."""
    tokenizer = FAMILIES["qwen3"].tokenizer().to_str()
    return TemplateText(ChatRenderer(TokenizerSpec(tokenizer, CHATML, {})))


ENDS = [
    "<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<end_of_turn>", "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>", "[EOS]", "<EOS>", " END", "\n###", "<|return|>", "<turn|>", "[/INST]",
    "[|endofturn|]", "<seed:eos>", "### End", " EOS_TOKEN", "</s></s>\n",
]  # fmt: skip
TEMPLATES = [
    ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>"),
    ("<s>[INST] {} [/INST]", "[INST]"),
    ("<<SYS>>\nBe kind.\n<</SYS>>\n\n{}", "<<SYS>>"),
    ("<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n", "<start_of_turn>"),
    ("<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>", "<|start_header_id|>"),
    ("Below is an instruction.\n\n### Instruction:\n{}\n\n### Response:\n", "### Instruction:"),
    ("### Human: {}### Assistant:", "### Human:"),
    ("A chat. USER: {} ASSISTANT:", "USER:"),
    ("\n\nHuman: {}\n\nAssistant:", "Human:"),
    ("<｜User｜>{}<｜Assistant｜>", "<｜User｜>"),
    ("[|user|]{}\n[|assistant|]", "[|user|]"),
    ("<SPECIAL_11>User\n{}\n<SPECIAL_11>Assistant\n", "<SPECIAL_11>"),
    ("<role>HUMAN</role>{}<role>ASSISTANT</role>", "<role>HUMAN</role>"),
    ("[Round 1]\n\n问：{}\n\n答：", "[Round 1]"),
    ("User: {}\n\nAssistant:", "User:"),
]


@pytest.mark.parametrize("end", ENDS)
def test_the_token_at_the_end_of_an_answer(template_text: TemplateText, end: str) -> None:
    name = {"</s></s>\n": "</s>"}.get(end, end.strip())
    assert template_text.end_of(f"It is 4{end}") == name
    assert template_text.end_of(f"It is 4{end} \n") == name
    assert template_text.end_of(f"{end} is 4.") is None


@pytest.mark.parametrize(("template", "name"), TEMPLATES)
def test_the_template_around_a_prompt(
    template_text: TemplateText, template: str, name: str
) -> None:
    assert template_text.anywhere_in(template.format("Why?")) == name


def test_the_template_before_an_answer(template_text: TemplateText) -> None:
    assert template_text.at_start_of("\n<|im_start|>assistant\nIt is 4.") == "<|im_start|>"
    assert template_text.at_start_of("### Response:\nIt is 4.") == "### Response:"
    assert template_text.at_start_of("<tool_call>\n{}") is None
    assert template_text.at_start_of("It is <|im_start|>.") is None


HARMLESS = [
    ("Write a page.", "<html><body>Hi</body></html>"),
    ("Think first.", "<answer>4</answer>"),
    ("Call f.", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'),
    ("Is it good?", "It is [POSITIVE]"),
    ("Print a list", "x = a[0]"),
    ("Sum {{ x }} with a function.", "def f(x) {\n  return x\n}"),
    ("Who wrote [1]? <b>Tell</b> me.", "<p>Ann</p> wrote it in the end"),
    ("### Question:\nWhy?\n\n### Answer:", "Because of THE LEGEND"),
    ("Human: who?\nUSER: me", "A comment ends in #"),
]


@pytest.mark.parametrize(("question", "answer"), HARMLESS)
def test_tags_and_words_in_brackets_are_no_control_tokens(
    template_text: TemplateText, question: str, answer: str
) -> None:
    assert template_text.anywhere_in(question) is None
    assert template_text.end_of(answer) is template_text.at_start_of(answer) is None


def test_tokens_of_the_base_without_bars_count_too() -> None:
    family = FAMILIES["gemma"]
    template = "{% for m in messages %}<bos>{{ m.content }}<eos>{% endfor %}"
    spec = TokenizerSpec(family.tokenizer().to_str(), template, {"bos_token": "<bos>"})
    base = TemplateText(ChatRenderer(spec))
    assert base.anywhere_in("<bos>Why?") == "<bos>"
    assert base.end_of("It is 4<bos>") == "<bos>"
