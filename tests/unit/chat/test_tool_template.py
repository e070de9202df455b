"""Bases with a template of their own for conversations with tools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.chat.default_templates import with_choice
from pipelines.chat.tokenizer_spec import load_spec
from pipelines.core.artifacts import TemplateChoice
from pipelines.core.conversation import Conversation, Turn

DEFAULT = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# Fails without a list of tools, as Hermes's does.
TOOL_USE = (
    "{%- for tool in tools -%}{{- 'tools: ' + tool | tojson + '\\n' -}}{%- endfor -%}"
    + DEFAULT.replace("im_end", "eot_id")
)
TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {}}},)
PLAIN = Conversation((Turn("user", "Hello"), Turn("assistant", "42")))
WITH_TOOLS = replace(PLAIN, tools=TOOLS)
LAYOUTS = ["list", "files"]


def write_base(folder: Path, tokenizer: Tokenizer, layout: str) -> str:
    """A base with both templates: in tokenizer_config.json, or as files."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
    }
    templates = {"tool_use": TOOL_USE, "rag": "{{ documents }}", "default": DEFAULT}
    if layout == "list":
        config["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    else:
        (folder / "additional_chat_templates").mkdir()
        for name, text in templates.items():
            path = "chat_template" if name == "default" else f"additional_chat_templates/{name}"
            (folder / f"{path}.jinja").write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_with_tools_and_their_prompts_use_the_template_that_transformers_uses(
    tmp_path: Path, byte_level: Tokenizer, layout: str, compiled: bool
) -> None:
    base = write_base(tmp_path / "base", byte_level, layout)
    renderer = ChatRenderer(load_spec(base), compiled=compiled)
    reference = AutoTokenizer.from_pretrained(base)
    for conversation in (PLAIN, WITH_TOOLS):
        tools = list(conversation.tools) or None
        messages = conversation.messages()
        text = reference.apply_chat_template(messages, tools=tools, tokenize=False)
        assert renderer.text(conversation) == text
        rendered = renderer.render(conversation)
        assert renderer.decode(rendered.input_ids, skip_special_tokens=False) == text
        stop = "<|eot_id|>" if tools else "<|im_end|>"
        answer = rendered.input_ids[rendered.loss_weights > 0]
        assert renderer.decode(answer, skip_special_tokens=False) == f"42{stop}"
        prompt = renderer.prompt_ids(messages[:1], conversation.tools)
        assert np.array_equal(rendered.input_ids[: len(prompt)], prompt)
        assert answer[-1] in renderer.stop_ids
    assert renderer.capabilities.tools


def test_a_mixed_batch_equals_its_conversations_alone(
    tmp_path: Path, byte_level: Tokenizer
) -> None:
    renderer = ChatRenderer(load_spec(write_base(tmp_path / "base", byte_level, "list")))
    refused = Conversation((Turn("user", "\ufdd0"), Turn("assistant", "42")))
    mixed = [PLAIN, WITH_TOOLS, WITH_TOOLS, refused, PLAIN, replace(refused, tools=TOOLS)]
    batch = renderer.render_batch(mixed)
    assert sorted(batch.errors) == [3, 5]
    for i, conversation in enumerate(mixed):
        if i not in batch.errors:
            alone = renderer.render(conversation)
            assert np.array_equal(batch[i].input_ids, alone.input_ids)
            assert np.array_equal(batch[i].loss_weights, alone.loss_weights)
    assert batch.masks.num_prompts.tolist() == [1, 1, 1, 0, 1, 0]
    assert not batch.masks.num_prompts_differ.any()
    assert len(batch.masks.num_loss_turns) == len(mixed)


def test_a_template_that_only_the_processor_has_is_the_bases_own(
    tmp_path: Path, byte_level: Tokenizer
) -> None:
    base = Path(write_base(tmp_path / "base", byte_level, "list"))
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": None}))
    assert load_spec(str(base)).template is None
    (base / "chat_template.json").write_text(json.dumps({"chat_template": DEFAULT}))
    assert load_spec(str(base)).template == DEFAULT


def test_a_chosen_template_replaces_both(tmp_path: Path, byte_level: Tokenizer) -> None:
    spec = load_spec(write_base(tmp_path / "base", byte_level, "files"))
    assert (spec.template, spec.tool_template) == (DEFAULT, TOOL_USE)
    renderer = ChatRenderer(with_choice(spec, TemplateChoice(DEFAULT)))
    assert renderer.template == TemplateChoice(DEFAULT)
    assert "look" in renderer.text(WITH_TOOLS) and "tools: " not in renderer.text(WITH_TOOLS)
    both = ChatRenderer(spec)
    again = ChatRenderer(with_choice(spec, both.template))
    assert again.text(WITH_TOOLS) == both.text(WITH_TOOLS)
    assert again.template.digest == both.template.digest != renderer.template.digest


def test_an_argument_may_be_read_by_either_template(byte_level: Tokenizer) -> None:
    spec = TokenizerSpec(byte_level.to_str(), DEFAULT, {"eos_token": "</s>"})
    spec = replace(spec, tool_template="{{- tone -}}" + TOOL_USE)
    renderer = ChatRenderer(with_choice(spec, TemplateChoice(arguments={"tone": "dry"})))
    assert renderer.text(WITH_TOOLS).startswith("drytools: ")
    assert renderer.text(PLAIN) == ChatRenderer(spec).text(PLAIN)
