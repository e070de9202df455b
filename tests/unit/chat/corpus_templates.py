"""Near-copies of published chat templates: own words, the published structure, and the tokens of
the bases that have them.

`templates/corpus/NAME.jinja` has what is written under which condition, what is cut from earlier
turns and what is refused, as the published template of that kind does.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.chat import TokenizerSpec
from tests.unit.chat.tokenizer_kinds import LLAMA_WORDS, byte_level_bpe

FOLDER = Path(__file__).parent / "templates" / "corpus"
_TOOL_MARKS = "<tool_call> </tool_call> <tool_response> </tool_response>"
_THINK = "<think> </think>"


@dataclass(frozen=True)
class Published:
    """The tokens of one published template, and the template arguments that rows need on it.

    `special` and `ordinary` are the added tokens with and without the flag special. `ends` end the
    text of a turn; without a value, `eos` does. Under the arguments `plain` a row without thoughts
    is trained, under `thinking` a row with one; None where no arguments do that. `variants` are
    more arguments to run with. `with_tools` names the base's template for rows with tools.
    """

    special: str
    ordinary: str = ""
    bos: str | None = None
    eos: str = "<|im_end|>"
    ends: str = ""
    variants: tuple[Mapping[str, Any], ...] = ()
    plain: Mapping[str, Any] | None = field(default_factory=dict)
    thinking: Mapping[str, Any] | None = None
    with_tools: str = ""

    @property
    def end_texts(self) -> tuple[str, ...]:
        return tuple(self.ends.split()) or (self.eos,)

    @property
    def all_arguments(self) -> list[Mapping[str, Any]]:
        """The template arguments of every case: none, and each that differs from the others."""
        wanted = [{}, *self.variants, self.plain, self.thinking]
        return [a for i, a in enumerate(wanted) if a is not None and a not in wanted[:i]]

    @property
    def named_tokens(self) -> dict[str, str]:
        return {"eos_token": self.eos} | ({"bos_token": self.bos} if self.bos else {})


_ON, _OFF = {"enable_thinking": True}, {"enable_thinking": False}
_CHATML = "<|im_start|> <|im_end|> <|endoftext|>"
_QWEN = Published(_CHATML, _TOOL_MARKS)
_QWEN_THINKS = f"{_THINK} {_TOOL_MARKS}"
_DEEPSEEK = "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜>"
_DEEPSEEK_ORDINARY = (
    "<｜User｜> <｜Assistant｜> <think> </think> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> "
    "<｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁sep｜> <｜tool▁outputs▁begin｜> "
    "<｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜>"
)
_deepseek = functools.partial(
    Published,
    _DEEPSEEK,
    _DEEPSEEK_ORDINARY,
    bos="<｜begin▁of▁sentence｜>",
    eos="<｜end▁of▁sentence｜>",
)
_LLAMA3 = "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>"
_llama3 = functools.partial(Published, _LLAMA3, bos="<|begin_of_text|>", eos="<|eot_id|>")
_GEMMA = "<bos> <eos> <start_of_turn> <end_of_turn>"
_gemma = functools.partial(Published, _GEMMA, bos="<bos>", eos="<eos>", ends="<end_of_turn>")
_GEMMA4 = (
    "<bos> <eos> <|turn> <turn|> <|tool> <tool|> <|tool_call> <tool_call|> <|tool_response> "
    '<tool_response|> <|channel> <channel|> <|think|> <|"|>'
)
_MISTRAL = (
    "<s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [ARGS] [THINK] [/THINK]"
)
_mistral = functools.partial(Published, _MISTRAL, bos="<s>", eos="</s>")
_PHI = "<|endoftext|> <|system|> <|user|> <|assistant|> <|end|> <|tool|> <|/tool|>"
_phi = functools.partial(Published, _PHI, eos="<|endoftext|>", ends="<|end|>")
_COHERE = (
    "<BOS_TOKEN> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|SYSTEM_TOKEN|> <|USER_TOKEN|> "
    "<|CHATBOT_TOKEN|> <|START_RESPONSE|> <|END_RESPONSE|> <|START_THINKING|> <|END_THINKING|> "
    "<|START_ACTION|> <|END_ACTION|> <|START_TOOL_RESULT|> <|END_TOOL_RESULT|>"
)
_cohere = functools.partial(Published, _COHERE, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>")
_GLM = "<|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>"
_glm = functools.partial(
    Published, _GLM, eos="<|endoftext|>", ends="<|user|> <|observation|> <|endoftext|>"
)
_GRANITE = "<|end_of_text|> <|start_of_role|> <|end_of_role|> <|tool_call|>"
_KIMI = (
    "[BOS] [EOS] <|im_end|> <|im_user|> <|im_assistant|> <|im_system|> <|im_middle|> "
    "<|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|> "
    "<|tool_call_argument_begin|> <|tool_call_end|>"
)
_LFM = (
    "<|startoftext|> <|im_start|> <|im_end|> <|tool_list_start|> <|tool_list_end|> "
    "<|tool_call_start|> <|tool_call_end|> <|tool_response_start|> <|tool_response_end|>"
)

PUBLISHED: dict[str, Published] = {
    "apertus": Published(
        "<s> </s> <|system_start|> <|system_end|> <|developer_start|> <|developer_end|> "
        "<|user_start|> <|user_end|> <|assistant_start|> <|assistant_end|> <|tools_prefix|> "
        "<|tools_suffix|>",
        bos="<s>",
        eos="<|assistant_end|>",
        ends="<|assistant_end|> <|tools_suffix|>",
        plain=None,
    ),
    "apriel15": _phi("<|tool_result|>", plain=None),
    "baichuan2": Published("<s> </s> <reserved_106> <reserved_107>", bos="<s>", eos="</s>"),
    "command_a_reasoning": _cohere(variants=({"reasoning": False},), plain=None, thinking={}),
    "command_r7b": _cohere(),
    "deepseek_r1_0528": _deepseek(),
    "deepseek_v3": _deepseek(),
    "deepseek_v31": _deepseek(variants=({"thinking": True},)),
    "devstral": _mistral(),
    "dots_llm1": Published(
        "<|endofresponse|> <|response|> <|userprompt|> <|endofuserprompt|> <|system|> "
        "<|endofsystem|>",
        eos="<|endofresponse|>",
    ),
    "ernie45": Published(
        "<s> </s> <|begin_of_sentence|> <|end_of_sentence|>",
        bos="<s>",
        eos="<|end_of_sentence|>",
    ),
    "exaone35": Published(
        "[BOS] [|system|] [|user|] [|assistant|] [|endofturn|]", bos="[BOS]", eos="[|endofturn|]"
    ),
    "exaone4": Published(
        "[BOS] [|system|] [|user|] [|assistant|] [|tool|] [|endofturn|]",
        _QWEN_THINKS,
        bos="[BOS]",
        eos="[|endofturn|]",
        thinking=_ON,
    ),
    "falcon3": Published(
        "<|endoftext|> <|system|> <|user|> <|assistant|>", _TOOL_MARKS, eos="<|endoftext|>"
    ),
    "functionary32": _llama3(),
    "gemma2": _gemma(),
    "gemma3": _gemma(),
    "gemma4": Published(
        _GEMMA4,
        bos="<bos>",
        eos="<eos>",
        ends="<turn|> <|tool_response>",
        plain=_ON,
    ),
    "gemma4_first": Published(_GEMMA4, bos="<bos>", eos="<eos>", ends="<turn|>"),
    "glm4": _glm(),
    "glm45": _glm(_QWEN_THINKS, variants=(_OFF, _ON), thinking={}, plain=_OFF),
    "gpt_oss": Published(
        "<|startoftext|> <|endoftext|> <|start|> <|end|> <|message|> <|channel|> <|return|> "
        "<|call|> <|constrain|>",
        bos="<|startoftext|>",
        eos="<|return|>",
        ends="<|return|> <|call|> <|end|>",
        thinking={},
    ),
    "granite33": Published(_GRANITE, _THINK, eos="<|end_of_text|>", thinking={}),
    "granite4": Published(_GRANITE, _TOOL_MARKS, eos="<|end_of_text|>"),
    "hermes3": Published(_CHATML, _TOOL_MARKS, with_tools="hermes3_tools"),
    "hunyuan_a13b": Published(
        "<|startoftext|> <|extra_0|> <|extra_4|> <|eos|>",
        _QWEN_THINKS,
        eos="<|eos|>",
        thinking={},
        plain=None,
        variants=(_OFF,),
    ),
    "internlm25": Published(
        "<s> </s> <|im_start|> <|im_end|> <|action_start|> <|action_end|> <|plugin|>", bos="<s>"
    ),
    "jamba": Published(
        "<|startoftext|> <|endoftext|> <|bom|> <|eom|> <|system|> <|user|> <|assistant|> <|tool|>",
        bos="<|startoftext|>",
        eos="<|eom|>",
    ),
    "kimi_k2": Published(_KIMI, bos="[BOS]", eos="[EOS]", ends="<|im_end|>"),
    "kimi_k2_thinking": Published(
        _KIMI, _THINK, bos="[BOS]", eos="[EOS]", ends="<|im_end|>", plain=None
    ),
    "kimi_k3": Published(
        "[BOS] [EOS] <|open|> <|close|> <|sep|> <|end_of_msg|>",
        bos="[BOS]",
        eos="[EOS]",
        ends="<|end_of_msg|>",
        plain={"thinking": False},
        thinking={},
    ),
    "lfm2": Published(_LFM, bos="<|startoftext|>"),
    "lfm25": Published(_LFM, _THINK, bos="<|startoftext|>", thinking={}),
    "ling": Published(
        "<|startoftext|> <|endoftext|> <|role_end|> <role> </role>",
        eos="<|role_end|>",
    ),
    "llama32": _llama3(),
    "llama3_first": _llama3(),
    "llama4": Published(
        "<|begin_of_text|> <|header_start|> <|header_end|> <|eot|> <|python_start|> <|python_end|>",
        bos="<|begin_of_text|>",
        eos="<|eot|>",
    ),
    "llama_nemotron": _llama3(_THINK),
    "longcat": Published("<longcat_s> </longcat_s>", eos="</longcat_s>"),
    "magistral": _mistral(thinking={}),
    "mimo_v2": Published(_CHATML, _QWEN_THINKS, plain={}, thinking=_ON),
    "minimax_m1": Published(
        "<begin_of_document> <beginning_of_sentence> <end_of_sentence>", eos="<end_of_sentence>"
    ),
    "minimax_m2": Published(
        "]~!b[ ]~b] [e~[",
        f"{_THINK} <minimax:tool_call> </minimax:tool_call>",
        bos="]~!b[",
        eos="[e~[",
        plain=None,
        thinking={},
    ),
    "ministral3_reasoning": _mistral(thinking={}),
    "mistral_nemo": _mistral(),
    "mistral_small31": _mistral(),
    "mixtral": Published("<s> </s>", bos="<s>", eos="</s>"),
    "nemotron3_nano": Published(_CHATML, _QWEN_THINKS, plain=_OFF, thinking={}),
    "nemotron_nano_v2": Published(
        "<s> </s> <SPECIAL_10> <SPECIAL_11> <SPECIAL_12>",
        _THINK,
        bos="<s>",
        eos="<SPECIAL_12>",
        thinking={},
    ),
    "olmo2": Published("<|endoftext|>", bos="<|endoftext|>", eos="<|endoftext|>"),
    "olmo3_think": Published(_CHATML, _THINK, plain=None),
    "openchat": Published("<s> </s> <|end_of_turn|>", bos="<s>", eos="<|end_of_turn|>"),
    "phi35": _phi(),
    "phi4_mini": _phi(),
    "phi4_reasoning": Published(
        "<|endoftext|> <|im_start|> <|im_end|> <|im_sep|>", _THINK, thinking={}
    ),
    "qwen25": _QWEN,
    "qwen35_small": Published(_CHATML, _QWEN_THINKS, thinking=_ON),
    "qwen36": Published(_CHATML, _QWEN_THINKS, plain=_OFF, thinking={}),
    "qwen3_coder": _QWEN,
    "qwen3_thinking": Published(_CHATML, _QWEN_THINKS, thinking={}, plain=None),
    "qwq": Published(_CHATML, _QWEN_THINKS, plain=None),
    "reka_flash3": Published("<|endoftext|> <sep>", eos="<sep>", plain=None),
    "seed_oss": Published(
        "<seed:bos> <seed:eos>",
        "<seed:think> </seed:think> <seed:tool_call> </seed:tool_call> <seed:cot_budget_reflect>",
        bos="<seed:bos>",
        eos="<seed:eos>",
        variants=({"thinking_budget": 0},),
        thinking={},
    ),
    "smollm2": Published(_CHATML),
    "smollm3": Published(_CHATML, _QWEN_THINKS, thinking={}, plain=_OFF),
    "tiny_aya": _cohere(),
    "xlam_qwen": _QWEN,
    "yi15": Published("<|startoftext|> <|endoftext|> <|im_start|> <|im_end|>"),
}


@functools.cache
def _tokenizer_json(special: str, ordinary: str) -> str:
    return byte_level_bpe(LLAMA_WORDS, special.split(), ordinary.split()).to_str()


def read(name: str) -> str:
    """The source of a template of the corpus."""
    return (FOLDER / f"{name}.jinja").read_text()


def spec_of(name: str, arguments: Mapping[str, Any]) -> TokenizerSpec:
    """The tokenizer of a published template with the template arguments of a recipe."""
    published = PUBLISHED[name]
    return TokenizerSpec(
        _tokenizer_json(published.special, published.ordinary),
        read(name),
        published.named_tokens,
        tool_template=read(published.with_tools) if published.with_tools else None,
        arguments=arguments,
    )
