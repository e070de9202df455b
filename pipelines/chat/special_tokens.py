"""Which of a tokenizer's added tokens are a template's own: text that was typed never becomes one of these.

A tokenizer's `special` flag does not tell: it only says what decoding may leave out. DeepSeek's `<｜User｜>` and Qwen's
`<tool_call>` do not have it. So what counts is where a template writes a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.chat.template import ChatTemplate, TemplateError

_BRACKETED = re.compile(
    r"[<\[{].*[>\]}]", re.DOTALL
)  # no white space, HTML aside no text: others are ordinary vocabulary
_PROBE = (
    {"role": "system", "content": "system"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
)


class SpecialTokens:
    """`tokens` part or end turns (and all that are special): nothing typed becomes one, whoever says it. `markers` are
    what a template writes inside a turn, such as `<think>` and `<tool_call>`: an assistant's text and calls become them, as
    what the model generates does, and what users, systems and tools say does not. Both map text to id.
    """

    def __init__(
        self,
        added: Sequence[Mapping[str, Any]],
        named: Iterable[str] = (),
        plain: str = "",
        source: str = "",
    ):
        """`plain` is what the template writes around turns of plain text, `source` the template itself."""
        ids = {token["content"]: token["id"] for token in added}
        sure = {token["content"] for token in added if token["special"]} | (set(named) & set(ids))
        maybe = [text for text in ids if text not in sure and _BRACKETED.fullmatch(text)]
        pairs = {text.replace("/", "", 1) for text in maybe if "/" in text}
        parting = {
            text for text in maybe if text in plain and text.replace("/", "", 1) not in pairs
        }
        self.tokens = {
            text: index for text, index in ids.items() if text in sure or text in parting
        }
        self.markers = {text: ids[text] for text in maybe if text in source and text not in parting}
        self.pattern, self.marker_pattern = _any_of(self.tokens), _any_of(self.markers)
        self.either = _any_of([*self.tokens, *self.markers])
        self._starts = tuple({text[:2] for text in self.tokens})
        self._marker_starts = tuple({text[:2] for text in self.markers})

    def typed_in(self, text: str, by_assistant: bool) -> bool:
        """Whether a text holds what must not become a token when `by_assistant`, or anyone else, says it."""
        for start in self._starts:  # almost no text gets past this
            if start in text:
                if self.pattern.search(text) is not None:
                    return True
                break
        if by_assistant:
            return False
        return (
            any(start in text for start in self._marker_starts)
            and self.marker_pattern.search(text) is not None
        )


def plain_text(template: ChatTemplate) -> str:
    """What a template writes around turns of plain text and before an answer."""
    written = []
    for first, last, prompt in ((0, 2, True), (1, 2, True), (0, 3, False), (1, 3, False)):
        try:
            written.append(template.render(_PROBE[first:last], (), prompt).text)
        except TemplateError:  # many take no system turn
            continue
    return "\n".join(written)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
