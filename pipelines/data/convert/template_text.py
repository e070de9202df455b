"""Text of chat templates spelled in rows: control tokens that end answers, and written prompts.

A message never becomes a special token, so this text would be trained letter by letter, next to the
token that the template writes. The patterns are those of published templates of all makers.
"""

from __future__ import annotations

import re

from pipelines.chat import ChatRenderer

# Bars mark control tokens of nearly all makers; without them only these names do: answers may well
# end in another closing tag or in a word in brackets.
_TOKENS = (
    r"<\|[^\s<>|]{1,40}\|>|<｜[^\s<>｜]{1,40}｜>|\[\|[^\s\[\]|]{1,40}\|\]|<turn\|>|</s>"
    r"|<seed:[a-z_]+>|<(?:end|beginning|start)_of_(?:turn|sentence|role|text)>|\[/INST\]"
)
_NAMES = "eos|eot|eod|eoa|eom|end|stop|sep|pad|endofturn|endoftext"
# The separators that the documentation of the older completion models asked for, and a variable.
_WORDS = r"(?<=\s)END|(?<!#)###(?: ?End)?|EOS_TOKEN|\{\{ ?eos_token ?\}\}"
_END = re.compile(rf"(?:{_TOKENS}|<\|?/?(?i:{_NAMES})>|\[/?(?i:{_NAMES})\]|{_WORDS})\Z")
_LAST_CHARACTERS = frozenset(">]D#dN}")
_MAX_END_CHARS = 64

_TEMPLATE = re.compile(
    rf"{_TOKENS}|<\|turn>|<extra_id_[01]>|<SPECIAL_1[0-9]>|<<SYS>>|\]~b\]"
    r"|<(?:human|bot|assistant|user|system)>:|<role>(?:HUMAN|ASSISTANT|SYSTEM)</role>"
    r"|\[(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|Round [0-9]+)\]"
    r"|^### ?(?:Instruction|Response|Human|Assistant|User|System):",
    re.MULTILINE,
)
_RESULT = "<tool_response>"
_FIRST_CHARACTERS = frozenset("<[#]")
_OPENINGS = ("USER:", "Human:", "User:")
_GENERATION_PROMPTS = ("ASSISTANT:", "Assistant:", "AI:", "Falcon:")


class TemplateText:
    """Finds the text of chat templates in messages, those of one base and of all known makers.

    A token that the tokenizer makes of this text is none of its finds.
    """

    def __init__(self, renderer: ChatRenderer) -> None:
        self._tokens = tokens = renderer.special_tokens
        self._learned = set(renderer.encoder.added_texts) - tokens.ids.keys()
        self._read = self._learned - tokens.marker_ids.keys()
        # Nearly all texts are passed by their first or last character.
        self._last = _LAST_CHARACTERS | {token[-1] for token in tokens.ids}
        self._first = _FIRST_CHARACTERS | {token[0] for token in tokens.ids}
        self._other_tokens = any(token[0] not in _FIRST_CHARACTERS for token in tokens.ids)

    def end_of(self, answer: str) -> str | None:
        """The control token whose text ends an answer, or None."""
        if answer[-1:].isspace():
            answer = answer.rstrip()
        if answer[-1:] not in self._last:
            return None
        match = _END.search(answer, max(0, len(answer) - _MAX_END_CHARS))
        if match:
            return None if match.group() in self._learned else match.group()
        tail = answer[-_MAX_END_CHARS:]
        last = [match for match in self._tokens.pattern.finditer(tail) if match.end() == len(tail)]
        return last[0].group() if last else None

    def at_start_of(self, answer: str) -> str | None:
        """The text of a chat template that begins an answer, or None."""
        if answer[:1].isspace():
            answer = answer.lstrip()
        if answer[:1] not in self._first:
            return None
        match = _TEMPLATE.match(answer) or self._tokens.pattern.match(answer)
        return None if match is None or match.group() in self._learned else match.group()

    @staticmethod
    def around_result(result: str) -> str | None:
        """The tag that a template of Qwen's kind writes around a tool's result, or None."""
        return _RESULT if result.lstrip().startswith(_RESULT) else None

    def anywhere_in(self, prompt: str) -> str | None:
        """The first text of a chat template in a prompt, or None."""
        if "<" in prompt or "[" in prompt or "###" in prompt:
            for match in _TEMPLATE.finditer(prompt):
                if match.group() not in self._read:
                    return match.group()
        elif not self._other_tokens and prompt[-1:] != ":" and not prompt[-1:].isspace():
            return None
        if prompt.rstrip().endswith(_GENERATION_PROMPTS):
            opening = next((text for text in _OPENINGS if text in prompt), None)
            if opening:
                return opening
        match = self._tokens.pattern.search(prompt)
        return match and match.group()
