"""Thoughts before answers: where a chat template opens one, and where it writes an empty one.

Some templates write an empty thought before an answer that has none, and some open a thought in the
generation prompt. Then the answer of a row without thoughts does not stand directly behind the
prompt that serving sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.chat.probes import ANSWER, ASK, CALL_WORDS, CALLING, THOUGHT
from pipelines.chat.spans import shared_length
from pipelines.chat.template import ChatTemplate, Messages, TemplateError, variables_of

SWITCHES = ("enable_thinking", "thinking", "reasoning", "enable_reasoning")
"""Arguments by which templates write prompts for answers with or without a thought."""

_NAME = "[A-Za-z_:]*(?:think|thought|reason)[A-Za-z_:]*"
_TAGS = (
    ("<{}>", "</{}>"),
    ("[{}]", "[/{}]"),
    ("<|START_{}|>", "<|END_{}|>"),
    ("<|begin_of_{}|>", "<|end_of_{}|>"),
    ("<|{}_start|>", "<|{}_end|>"),
    ("<|channel>{}", "<channel|>"),
)


def _pattern(*tags: str) -> str:
    return r"\s*".join(re.escape(tag).replace(re.escape("{}"), _NAME) for tag in tags)


_OPENED = re.compile(rf"({'|'.join(_pattern(tags[0]) for tags in _TAGS)})\s*$", re.IGNORECASE)
_EMPTY = re.compile(rf"(?:{'|'.join(_pattern(*tags) for tags in _TAGS)})\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Thoughts:
    """What one template does with thoughts, for the arguments that it runs with.

    `tag` opens a thought. `empty`: the empty thought that it writes before an answer without one,
    if it does. `opened`: its prompt opens a thought. `expected`: its prompt is for an answer with a
    thought, and no argument of the recipe asks for that. `trains_empty`: an argument does, so empty
    thoughts are trained. `switch`: the argument and another value that would give prompts for
    answers without a thought.
    """

    tag: str = ""
    empty: str = ""
    opened: bool = False
    expected: bool = False
    trains_empty: bool = False
    switch: tuple[str, bool] | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags by which an answer's text may change where the answer begins."""
        if not (self.expected or self.empty):
            return ()
        closing = self.empty.strip().removeprefix(self.tag).strip()
        return tuple(tag for tag in (self.tag, closing) if tag)

    def gap(self, text: str, prompt: str) -> int:
        """The length of the part of an empty thought that follows the prompt in a text, and that
        is not trained.
        """
        if not self.empty or self.trains_empty:
            return 0
        shared = next(n for n in range(len(self.empty), -1, -1) if prompt.endswith(self.empty[:n]))
        rest = self.empty[shared:]
        return len(rest) if rest.strip() and text.startswith(rest, len(prompt)) else 0

    def lacks_thought(self, text: str, prompt: str) -> bool:
        """Whether a text, which begins with the prompt, has no thought although one is expected."""
        if not self.expected or opens_thought(prompt):
            return False
        return not text[len(prompt) : len(prompt) + 80].lstrip().startswith(self.tag)


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends inside a thought that it opens."""
    return _OPENED.search(prompt) is not None


def without_empty(prompt: str) -> str:
    """The prompt without the empty thought that it ends with, if it does."""
    last = [m for m in _EMPTY.finditer(prompt) if m.end() == len(prompt)]
    return prompt[: last[-1].start()] if last else prompt


def probe_thoughts(template: ChatTemplate, key: str, arguments: Mapping[str, Any]) -> Thoughts:
    """Probe a template that reads thoughts from the message key `key`, or from none.

    `arguments` are those of its variables that the recipe gives.
    """
    prompt = _render(template, [ASK], True)
    opened, empty = _OPENED.search(prompt), _empty_thought(template, key, prompt)
    given = [name for name in SWITCHES if name in arguments]
    variables = variables_of(template.source)
    switches = [name for name in SWITCHES if name in variables]
    tag, expected, switch = opened.group(1) if opened else _tag_of(empty), False, None
    for name in switches:
        for value in (False, True):
            other = template.with_variable(name, value)
            other_prompt = _render(other, [ASK], True)
            is_given = arguments.get(name) is value
            if switch is None and not is_given and _serves_plain(other, key, other_prompt):
                switch = (name, value)
            added = other_prompt[len(without_empty(other_prompt)) :]
            if not given and not value and other_prompt != prompt and (opened or added):
                expected, tag = True, tag or _tag_of(added)
    return Thoughts(
        tag=tag,
        empty=empty,
        opened=opened is not None or _opens(template, key, prompt),
        expected=expected,
        trains_empty=any(arguments[name] is True for name in given),
        switch=switch,
    )


def _serves_plain(template: ChatTemplate, key: str, prompt: str) -> bool:
    """Whether an answer without a thought stands directly behind its prompt."""
    text = _render(template, [ASK, ANSWER])
    follows = text.startswith(prompt) and not opens_thought(prompt)
    return follows and not _empty_thought(template, key, prompt)


def _empty_thought(template: ChatTemplate, key: str, prompt: str) -> str:
    """The empty thought that a template writes before a plain answer, not as part of its prompt."""
    text = _render(template, [ASK, ANSWER])
    before = text.partition(str(ANSWER["content"]))[0]
    last = [*_EMPTY.finditer(before)][-1:]
    follows = len(prompt) if text.startswith(prompt) else 0
    if not last:
        return _empty_by_thought(template, key, prompt, before)
    if len(last[0].group().rstrip()) + last[0].start() <= follows:
        return ""
    start = last[0].start()
    while start > follows and before[start - 1].isspace():
        start -= 1
    return before[start : last[0].end()]


def _empty_by_thought(template: ChatTemplate, key: str, prompt: str, before: str) -> str:
    """The same for tags of any form: what is `before` a plain answer is an empty thought if it is
    what is around a thought.
    """
    opening, closing = _around_thought(template, key, ANSWER, str(ANSWER["content"]))
    rest = before.removeprefix(prompt)
    if not (opening or closing) or rest == before or not rest.strip():
        return ""
    if _without_space(opening + closing) != _without_space(before):
        return ""
    # The header of an answer is not part of the thought, and not that of a call.
    closing = closing.lstrip()
    _, before_call = _around_thought(template, key, CALLING, CALL_WORDS[0])
    shared = shared_length(closing, before_call.lstrip())
    return rest[: len(rest) - len(closing) + shared] if shared else rest


def _opens(template: ChatTemplate, key: str, prompt: str) -> bool:
    """Whether a prompt with tags of any form opens a thought, which a plain answer closes."""
    opening, _ = _around_thought(template, key, ANSWER, str(ANSWER["content"]))
    return bool(_empty_thought(template, key, prompt)) and _without_space(
        opening
    ) == _without_space(prompt)


def _around_thought(
    template: ChatTemplate, key: str, answer: Mapping[str, Any], word: str
) -> tuple[str, str]:
    """The text before a thought in a key of its own, and behind it up to a word of the answer."""
    if key in ("", "content"):
        return "", ""
    text = _render(template, [ASK, {**answer, key: THOUGHT}])
    opening, _, rest = text.partition(THOUGHT)
    closing, separator, _ = rest.partition(word)
    return (opening, closing) if separator else ("", "")


def _without_space(text: str) -> str:
    return "".join(text.split())


def _tag_of(empty: str) -> str:
    """The tag that opens an empty thought."""
    match = re.match(rf"\s*({'|'.join(_pattern(tags[0]) for tags in _TAGS)})", empty, re.IGNORECASE)
    return match.group(1) if match else ""


def _render(template: ChatTemplate, messages: Messages, prompt: bool = False) -> str:
    try:
        return template.render(messages, (), prompt).text
    except TemplateError:
        return ""
