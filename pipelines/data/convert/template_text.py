"""Text of chat templates spelled in rows: control tokens that end answers, and written prompts.

A message never becomes a special token, so this text would be trained letter by letter, next to the
token that the template writes. The patterns are those of published templates of all makers.
"""

from __future__ import annotations

import re

from pipelines.chat import ChatRenderer

# Bars mark control tokens of nearly all makers; without them only these names do: answers may well
# end in another closing tag or in a word in brackets.
_BARS = r"<\|[^\s<>|]{1,40}\|>|<｜[^\s<>｜]{1,40}｜>"
_NAMES = r"eos|eot|eod|eoa|eom|end|stop|sep|pad|end_of_turn|endofturn|end_of_text|endoftext"
_ENDS = rf"{_BARS}|</s>|<turn\|>|<\|?/?(?:(?i:{_NAMES}))>|\[/?(?:(?i:{_NAMES}|INST))\]"
# The separators that the documentation of the older completion models asked for.
_WORDS = r"(?<=\s)END|(?:^|(?<=\s))###"
_END = re.compile(rf"(?:{_ENDS}|{_WORDS})\Z")
_LAST_CHARACTERS = frozenset(">]D#")
_MAX_END_CHARS = 64

_TEMPLATE = re.compile(
    rf"{_BARS}|<start_of_turn>|<end_of_turn>|<\|turn>|<turn\|>|<start_of_role>|<extra_id_[01]>"
    r"|<(?:human|bot|assistant|user|system)>:|<<SYS>>|\[/?(?:INST|SYSTEM_PROMPT)\]|</s>"
    r"|^### ?(?:Instruction|Response|Human|Assistant|User|System):",
    re.MULTILINE,
)
_TEMPLATE_AT_START = re.compile(rf"\s*(?:{_TEMPLATE.pattern})", re.MULTILINE)
_OPENINGS, _GENERATION_PROMPTS = ("USER:", "Human:", "User:"), ("ASSISTANT:", "Assistant:")


class TemplateText:
    """Finds the text of chat templates in messages, those of one base and of all known makers.

    A token that the tokenizer makes of this text is none of its finds.
    """

    def __init__(self, renderer: ChatRenderer) -> None:
        self._tokens = tokens = renderer.special_tokens
        self._learned = set(renderer.encoder.added_texts) - tokens.ids.keys()
        self._read = self._learned - tokens.marker_ids.keys()

    def end_of(self, answer: str) -> str | None:
        """The control token whose text ends an answer, or None."""
        text = answer.rstrip()
        if text[-1:] in _LAST_CHARACTERS:
            match = _END.search(text, max(0, len(text) - _MAX_END_CHARS))
            if match:
                return None if match.group() in self._learned else match.group()
        tail = text[-_MAX_END_CHARS:]
        if not self._tokens.occur_in(tail, by_assistant=True):
            return None
        *_, last = self._tokens.pattern.finditer(tail)
        return last.group() if last.end() == len(tail) else None

    def anywhere_in(self, prompt: str) -> str | None:
        """The first text of a chat template in a prompt, or None."""
        if "<" in prompt or "[" in prompt or "###" in prompt:
            for match in _TEMPLATE.finditer(prompt):
                if match.group() not in self._read:
                    return match.group()
        if ":" in prompt[-_MAX_END_CHARS:] and prompt.rstrip().endswith(_GENERATION_PROMPTS):
            return next((opening for opening in _OPENINGS if opening in prompt), None)
        if not self._tokens.occur_in(prompt, by_assistant=True):
            return None
        match = self._tokens.pattern.search(prompt)
        return match and match.group()

    def at_start_of(self, answer: str) -> str | None:
        """The text of a chat template that begins an answer, or None."""
        match = _TEMPLATE_AT_START.match(answer)
        text = match and match.group().strip()
        return None if text in self._learned else text
