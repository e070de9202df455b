"""The template of a renderer: the base's own, one that a recipe names, or a default layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from pipelines.chat.template import TemplateError, variables_of
from pipelines.chat.template_variables import check_arguments
from pipelines.chat.tokenizer_spec import TokenizerSpec, added_tokens
from pipelines.config.schema import BUILT_IN_TEMPLATES, DataConfig
from pipelines.core.artifacts import TemplateChoice
from pipelines.core.errors import UserError
from pipelines.storage import nearest_path

# In `alpaca` and `inst` the tokenizer's end token ends an answer.
ALPACA_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- message['content'] + '\\n\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- '### Instruction:\\n' + message['content'] + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- '### Response:\\n' -}}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{{- '\\n\\n' -}}
{%- elif message['role'] == 'tool' -%}
{{- '### Input:\\n' + message['content'] + '\\n\\n' -}}
{%- else -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '### Response:\\n' -}}
{%- endif -%}
"""

INST_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set lead = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set lead = '' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if turn['role'] == 'user' -%}
{{- bos_token + '[INST] ' + (lead if loop.first else '') + turn['content'] + ' [/INST]' -}}
{%- elif turn['role'] == 'assistant' -%}
{%- generation -%}{{- ' ' + turn['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- raise_exception('unknown role ' + turn['role'] + '; valid: system first, user, assistant') -}}
{%- endif -%}
{%- endfor -%}
"""


CHATML_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_SOURCES = {"alpaca": ALPACA_TEMPLATE, "chatml": CHATML_TEMPLATE, "inst": INST_TEMPLATE}


def chosen_template(config: DataConfig) -> TemplateChoice:
    """What `data.chat_template` and `data.template_arguments` choose, files read.

    Raises UserError when the file is missing or has no template.
    """
    name = config.chat_template
    text = None if name is None else _SOURCES.get(name) or _read(name)
    return TemplateChoice(text, None, dict(config.template_arguments))


def with_choice(spec: TokenizerSpec, choice: TemplateChoice) -> TokenizerSpec:
    """The tokenizer with the chosen template instead of its own, and with the arguments.

    Raises UserError for an argument that the template does not read, and for `chatml` on a
    tokenizer without its tokens.
    """
    spec = dataclasses.replace(spec, arguments=choice.arguments)
    if choice.text is not None:
        spec = dataclasses.replace(
            spec,
            template=choice.text,
            tool_template=choice.tool_text,
            template_key="data.chat_template",
        )
    if choice.text == CHATML_TEMPLATE and not _has_token(spec, "<|im_end|>"):
        raise UserError(
            "data.chat_template=chatml: the tokenizer of model.base has no token <|im_end|>, which "
            "ends an answer there; set data.chat_template=alpaca"
        )
    if choice.arguments:
        template = effective_template(spec)
        try:
            texts = (template.text or "", template.tool_text or "")
            variables = frozenset.union(*map(variables_of, texts))
        except TemplateError as error:
            raise UserError(f"{spec.template_key}: {error}") from error
        check_arguments(choice.arguments, variables)
    return spec


def effective_template(spec: TokenizerSpec) -> TemplateChoice:
    """The tokenizer's own template, else `[INST]` for a tokenizer like Llama-2's, else the alpaca
    prompt; with its arguments.

    Raises UserError when there is neither a template nor an end token that could end an answer.
    """
    text = spec.template or _SOURCES[default_layout(spec)]
    return TemplateChoice(text, spec.tool_template, spec.arguments)


def default_layout(spec: TokenizerSpec) -> str:
    """The name of the built-in template for a tokenizer without one of its own: inst or alpaca.

    Raises UserError when the tokenizer has no end token that could end an answer.
    """
    if "eos_token" not in spec.named_tokens:
        raise UserError(
            "model.base: its tokenizer has neither a chat template nor an end token; set "
            "data.chat_template, or add an eos_token to its tokenizer_config.json"
        )
    byte_fallback = json.loads(spec.tokenizer_json)["model"].get("byte_fallback", False)
    like_llama2 = byte_fallback and spec.named_tokens.get("bos_token") == "<s>"
    return "inst" if like_llama2 else "alpaca"


def layout_note(layout: str) -> str:
    """The note for a base that has no chat template, where the built-in `layout` is used."""
    note = f"the base has no chat template: the {layout} layout is used"
    return f"{note}; data.chat_template sets another"


def _read(name: str) -> str:
    path = Path(name)
    given, names = f"data.chat_template={name}", ", ".join(BUILT_IN_TEMPLATES)
    if "{%" in name or "{{" in name:
        raise UserError(
            "data.chat_template: it names a template and is none itself; write the template to a "
            "file, and set the file's path"
        )
    if not path.is_file():
        near = nearest_path(path)
        hint = f"; did you mean {near}?" if near and Path(near).is_file() else ""
        kind = "a folder" if path.is_dir() else "no such file"
        raise UserError(
            f"{given}: {kind}; set a file with a Jinja template, or one of {names}{hint}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{given}: cannot be read ({reason})") from error
    if _is_json(text):
        raise UserError(f"{given}: a JSON file; set a file with the template's text alone")
    if "{%" not in text and "{{" not in text:
        raise UserError(
            f"{given}: not a Jinja template: it has no tag such as {{% for message in messages %}}"
        )
    return text


def _has_token(spec: TokenizerSpec, token: str) -> bool:
    return any(added["content"] == token for added in added_tokens(spec))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
