"""Special tokens of a template, and text in messages that looks like them.

A message that contains `<|im_end|>` must not end its turn (special-token injection). So text from
messages is never encoded as a special token: `SpecialTokens` knows which tokens these are,
`InjectionGuard` finds the text of a render that must stay plain. A tokenizer's own `special` flag
is not enough, as it only controls what decoding leaves out: DeepSeek's `<｜User｜>` and Qwen's
`<tool_call>` do not have it. What counts is where the template writes a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from pipelines.chat.spans import PlainSpans, RenderedSpans, Span
from pipelines.chat.template import ChatTemplate, Messages, TemplateError

# Added tokens of other forms (runs of spaces, say) are ordinary vocabulary.
_BRACKETED = re.compile(r"[<\[{].*[>\]}]", re.DOTALL)
_PROBE = (
    {"role": "system", "content": "system"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
)
_PLACEHOLDER = "\ufdd4"  # a noncharacter: no template writes it and JSON does not escape it
_STRUCTURAL_KEYS = ("role", "content")  # contents have marks of their own, see template


class SpecialTokens:
    """The tokens that messages must not inject. Both dicts map a token's text to its id.

    `ids`: tokens that separate or end turns, and all that the tokenizer calls special. No text of a
    message becomes one, whatever its role. `marker_ids`: tokens that the template writes inside a
    turn, such as `<think>` and `<tool_call>`. An assistant's text and calls may become these, as
    the model generates them; the text of system, user and tool turns may not.
    """

    def __init__(
        self,
        added: Sequence[Mapping[str, Any]],
        named: Iterable[str] = (),
        plain: str = "",
        source: str = "",
    ):
        """`added`: the tokenizer's added tokens; `named`: the texts of its bos, eos and so on.

        `plain` is what the template writes around turns of plain text, `source` its Jinja source.
        """
        ids = {token["content"]: token["id"] for token in added}
        special = {token["content"] for token in added if token["special"]}
        special |= set(named) & set(ids)
        bracketed = [text for text in ids if text not in special and _BRACKETED.fullmatch(text)]
        # A token that has a closing partner (`<think>`, `</think>`) is written inside turns.
        paired = {text.replace("/", "", 1) for text in bracketed if "/" in text}
        separators = {
            text for text in bracketed if text in plain and text.replace("/", "", 1) not in paired
        }
        self.ids = {text: i for text, i in ids.items() if text in special or text in separators}
        markers = [text for text in bracketed if text in source and text not in separators]
        self.marker_ids = {text: ids[text] for text in markers}
        self.pattern, self.marker_pattern = _any_of(self.ids), _any_of(self.marker_ids)
        self.any_pattern = _any_of([*self.ids, *self.marker_ids])
        self._prefixes = tuple({text[:2] for text in self.ids})
        self._marker_prefixes = tuple({text[:2] for text in self.marker_ids})

    def occur_in(self, text: str, by_assistant: bool) -> bool:
        """True if a text spells a special token that it must not become in this kind of turn."""
        for prefix in self._prefixes:  # quick: almost no text passes this test
            if prefix in text:
                if self.pattern.search(text) is not None:
                    return True
                break
        if by_assistant:
            return False
        return (
            any(prefix in text for prefix in self._marker_prefixes)
            and self.marker_pattern.search(text) is not None
        )


def plain_text(template: ChatTemplate) -> str:
    """The text that a template writes around turns of plain text and before an answer."""
    texts = []
    for first, last, prompt in ((0, 2, True), (1, 2, True), (0, 3, False), (1, 3, False)):
        try:
            texts.append(template.render(_PROBE[first:last], (), prompt).text)
        except TemplateError:  # many templates take no system turn
            continue
    return "\n".join(texts)


class InjectionGuard:
    """Finds special tokens spelled in messages and tools, and where one template writes them.

    Contents are located by their marks. For names, tools and tool calls a second render, with
    placeholder characters in place of the special tokens' text, shows where that text is written,
    whatever the template does with the rest.
    """

    def __init__(self, template: ChatTemplate, special_tokens: SpecialTokens) -> None:
        self._template = template
        self._special_tokens = special_tokens

    def contains_special_tokens(self, messages: Messages, tools: Sequence[Any]) -> bool:
        """True if any text of the messages and tools spells a token that it must not become."""
        occur_in = self._special_tokens.occur_in
        return any(
            occur_in(m["content"], m["role"] == "assistant") for m in messages
        ) or self._outside_contents(messages, tools)

    def protect(
        self, spans: RenderedSpans, messages: Messages, tools: Sequence[Any], prompt: bool = False
    ) -> PlainSpans:
        """The spans of a render that stay plain: the contents, and where names, tools, calls,
        thoughts and contents that the template rebuilds spell tokens.

        Raises TemplateError when a message spells a special token and the template hides where.
        """
        tokens, contents = self._special_tokens, [*spans.contents.values()]
        hidden = {i: messages[i]["content"] for i in spans.hidden}
        texts = [*hidden.values(), *(text for text, _ in _side_texts(messages, tools))]
        context = [*spans.context, *_unique_contents(spans.text, messages, hidden)]
        special = self._spelled_spans(spans, messages, tools, tokens.pattern, prompt, True)
        if special is None and any(tokens.pattern.search(text) for text in texts):
            raise TemplateError(
                "a message spells a special token, and the chat template hides where it writes it"
            )
        markers = self._spelled_spans(spans, messages, tools, tokens.marker_pattern, prompt, False)
        return PlainSpans(
            tuple(sorted([*contents, *(special or ())])), (*context, *(markers or ()))
        )

    def _spelled_spans(
        self,
        spans: RenderedSpans,
        messages: Messages,
        tools: Sequence[Any],
        pattern: re.Pattern[str],
        prompt: bool,
        assistant: bool,
    ) -> list[Span] | None:
        """Where texts outside of located contents match the pattern; None if that is not shown."""
        changed = _with_placeholders(messages, tools, pattern, assistant, spans.hidden)
        if changed == ([*messages], [*tools]):
            return []
        try:
            other = self._template.render(*changed, prompt).text
        except TemplateError:
            return None
        return changed_spans(spans.written, other)

    def _outside_contents(self, messages: Messages, tools: Sequence[Any]) -> bool:
        return any(self._special_tokens.occur_in(*text) for text in _side_texts(messages, tools))


def _unique_contents(text: str, messages: Messages, turns: Iterable[int]) -> list[Span]:
    """Spans of these messages' contents that occur in the text just once, found without marks.

    A template may look for markers in a content, and so treat a marked content differently.
    """
    contents = [messages[i]["content"].strip() for i in turns if messages[i]["role"] != "assistant"]
    return [
        (text.find(content), text.find(content) + len(content))
        for content in contents
        if text.count(content) == 1
    ]


def _side_texts(messages: Messages, tools: Sequence[Any]) -> Iterator[tuple[str, bool]]:
    """Every text in messages and tools except roles and contents, keys included.

    With each text, whether it comes from an assistant turn.
    """
    for message in messages:
        by_assistant = message["role"] == "assistant"
        yield from ((text, by_assistant) for text in _strings(_side_fields(message)))
    yield from ((text, False) for text in _strings(tools))


def _with_placeholders(
    messages: Messages,
    tools: Sequence[Any],
    pattern: re.Pattern[str],
    assistant: bool,
    hidden: Sequence[int],
) -> tuple[list[Mapping[str, Any]], list[Any]]:
    """The messages and tools with placeholders of the same length for matches of the pattern.

    Only their side texts change and the contents of `hidden`, those of assistant turns only if
    `assistant`.
    """
    replaced = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and not assistant:
            replaced.append(message)
            continue
        changed = {**message, **_replace_matches(_side_fields(message), pattern)}
        if i in hidden:
            changed["content"] = _replace_matches(message["content"], pattern)
        replaced.append(changed)
    return replaced, [_replace_matches(tool, pattern) for tool in tools]


def changed_spans(plain: str, other: str) -> list[Span] | None:
    """Spans where `other` has placeholders and `plain` has text; None if they differ elsewhere."""
    if len(plain) != len(other):
        return None
    changed = [i for i, (a, b) in enumerate(zip(plain, other, strict=True)) if a != b]
    if any(other[i] != _PLACEHOLDER for i in changed):
        return None
    # Position minus rank is the same for all positions of a run.
    runs = [
        [position for _, position in run]
        for _, run in groupby(enumerate(changed), lambda pair: pair[1] - pair[0])
    ]
    return [(run[0], run[-1] + 1) for run in runs]


def _side_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in _STRUCTURAL_KEYS}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _replace_matches(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda match: _PLACEHOLDER * len(match.group()), value)
    if isinstance(value, Mapping):
        return {
            _replace_matches(key, pattern): _replace_matches(item, pattern)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_replace_matches(item, pattern) for item in value]
    return value


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
