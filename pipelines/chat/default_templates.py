"""Chat templates for bases that come without one. The tokenizer's end token ends an answer."""

from __future__ import annotations

import json

from pipelines.chat.tokenizer_spec import TokenizerSpec
from pipelines.core.errors import UserError

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


def template_for(spec: TokenizerSpec) -> str:
    """The tokenizer's own template, else `[INST]` for a tokenizer like Llama-2's, else the alpaca
    prompt.

    Raises UserError when there is neither a template nor an end token that could end an answer.
    """
    if spec.template:
        return spec.template
    if "eos_token" not in spec.named_tokens:
        raise UserError(
            "model.base: its tokenizer has neither a chat template nor an end token; add a "
            "chat_template.jinja to its folder, or an eos_token to its tokenizer_config.json"
        )
    byte_fallback = json.loads(spec.tokenizer_json)["model"].get("byte_fallback", False)
    like_llama2 = byte_fallback and spec.named_tokens.get("bos_token") == "<s>"
    return INST_TEMPLATE if like_llama2 else ALPACA_TEMPLATE
