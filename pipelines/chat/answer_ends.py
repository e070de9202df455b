"""The texts with which a chat template ends an assistant turn, and the tokens that they end in.

Most templates end every turn in one way. Some end the last turn of a conversation in another
(gpt-oss writes `<|return|>` there and `<|end|>` elsewhere) or calls (`<|call|>`). Some write no
end: the header of the next turn ends an answer there, as it does in serving (GLM-4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipelines.chat.probes import ANSWER, ASK, CALL_WORDS, CALLING, RESULT, TOOL
from pipelines.chat.spans import shared_length
from pipelines.chat.special_tokens import SpecialTokens
from pipelines.chat.template import ChatTemplate, Messages, TemplateError


class _Ends(NamedTuple):
    """The ends of one kind of turn.

    `text`: the end, if it is the same everywhere; `tokens`: those that it, or the ends of different
    places, end in; `missing`: the next turn's header, if a conversation's last turn has no end.
    """

    text: str
    tokens: tuple[str, ...]
    missing: str = ""


class AnswerEnds:
    """The ends of one template's assistant turns. `stop_ids` are the tokens that they end in."""

    def __init__(
        self,
        template: ChatTemplate,
        special_tokens: SpecialTokens,
        calling: Mapping[str, Any] = CALLING,
        result: Mapping[str, Any] = RESULT,
    ) -> None:
        """`calling` and `result`: a call and its result in the form that the template takes."""
        self._special = special_tokens.pattern
        self._next_token = re.compile(rf"\s*(?:{special_tokens.pattern.pattern})")
        question, content, value = str(ASK["content"]), str(ANSWER["content"]), CALL_WORDS[-1]
        self._always_written = _prompt_written_always(template)
        answers = self._ends(
            _after(template, [ASK, ANSWER], content),
            _after(template, [ASK, ANSWER, ASK, ANSWER], content, question),
        )
        calls = self._ends(
            _after(template, [ASK, calling], value),
            _after(template, [ASK, calling, result, ANSWER], value, str(RESULT["content"])),
        )
        self._text = answers.text
        self._missing = {False: answers.missing, True: calls.missing}
        tokens = dict.fromkeys([*answers.tokens, *calls.tokens])
        self.stop_ids = tuple(special_tokens.ids[token] for token in tokens)

    def after(self, text: str, start: int, limit: int, marked: int | None = None) -> int | None:
        """Where the turn ends whose own text ends at `start`; None if no end comes before `limit`.

        An end is the template's end text, or a special token behind nothing but white space, the
        latter only up to `marked` if the template marks the end of the turn itself.
        """
        if self._text and text.startswith(self._text, start, limit):
            return start + len(self._text)
        match = self._next_token.match(text, start, limit if marked is None else marked)
        return match.end() if match else None

    def last_in(self, text: str, start: int, limit: int) -> int | None:
        """Where the last turn of `text[start:limit]` ends; None if it ends without a token."""
        position = text.rfind(self._text, start, limit) if self._text else -1
        if position >= 0:
            return position + len(self._text)
        matches = [*self._special.finditer(text, start, limit)]
        if matches and not text[matches[-1].end() : limit].strip():
            return matches[-1].end()
        return None

    def after_shared(self, text: str, other: str, start: int, limit: int) -> int | None:
        """Where a turn ends of which only the beginning, from `start`, is the same in two texts."""
        position = start + shared_length(text[start:limit], other[start:])
        return self.after(text, self.token_start(text, position), limit)

    def token_start(self, text: str, position: int) -> int:
        """The position, or the start of the special token of the text that it is inside of."""
        inside = [m.start() for m in self._special.finditer(text) if m.start() < position < m.end()]
        return inside[0] if inside else position

    def missing(self, with_calls: bool) -> str:
        """What a conversation that ends in an answer lacks at its end; mostly nothing."""
        return self._missing[with_calls]

    def _ends(self, last: str | None, middle: str | None) -> _Ends:
        """From the text behind a turn that ends a conversation, and behind one that does not."""
        if last is None:
            return _Ends("", ())
        first = self._special.search(last)
        if middle is None:
            return _Ends(last[: first.end()], (first.group(),)) if first else _Ends("", ())
        size = shared_length(last, middle)
        shared = [m for m in self._special.finditer(last) if m.end() <= size]
        if shared:
            own = len(last) - shared_length(last[::-1], self._always_written[::-1])
            end = max([shared[0], *(m for m in shared if m.end() <= own)], key=re.Match.end)
            return _Ends(last[: end.end()], (end.group(),))
        follows = self._next_token.match(middle, len(last) if middle.startswith(last) else 0)
        next_token = [follows.group().strip()] if follows else []
        if first:
            return _Ends("", (first.group(), *next_token))
        return _Ends("", tuple(next_token), follows.group() if follows else "")


def _prompt_written_always(template: ChatTemplate) -> str:
    """The text behind a question, if the template writes its generation prompt in any case, as the
    first one of Llama-3 does: then it follows the end of a conversation's last answer too.
    """
    try:
        answered = [template.render([ASK, ANSWER], (), prompt).text for prompt in (False, True)]
        asked = template.render([ASK], (), prompt=True).text
    except TemplateError:
        return ""
    return asked.partition(str(ASK["content"]))[2] if answered[0] == answered[1] else ""


def _after(template: ChatTemplate, messages: Messages, word: str, until: str = "") -> str | None:
    """The text behind the first `word` in a render, up to `until`; None where it is not there."""
    try:
        text = template.render(messages, [TOOL]).text
    except TemplateError:
        return None
    _, separator, rest = text.partition(word)
    if not separator or until not in rest:
        return None
    return rest.partition(until)[0] if until else rest
