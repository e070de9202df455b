"""Locates the assistant's turns in a rendered conversation, for any template.

An assistant turn begins where the generation prompt ends that serving sends in its place: the
template's render of the messages before it. It ends with the token that ends the turn. So
everything that serving leaves to the model is inside: headers and channels, thoughts, text and
calls in whatever order the template writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.chat.answer_ends import AnswerEnds
from pipelines.chat.fallbacks import THOUGHT_KEYS
from pipelines.chat.spans import (
    LEFT_OUT,
    NO_PROMPT,
    NO_THOUGHT,
    OTHER_PROMPT,
    AnswerSpan,
    RenderedSpans,
    Span,
    shared_length,
)
from pipelines.chat.template import (
    ChatTemplate,
    MarkedText,
    Messages,
    TemplateError,
    mark_content,
    parse_marks,
)
from pipelines.chat.thoughts import Thoughts, opens_thought

_PLACEHOLDER = "the answer"


class _Run(NamedTuple):
    """One run of the template: its input, the text that it wrote, and what is known of the text.

    `generations` are the spans of the generation blocks, by message index, if there is one for each
    assistant turn that contains the turn's text.
    """

    messages: Messages
    tools: Sequence[Any]
    text: str
    contents: Mapping[int, Span]
    generations: Mapping[int, Span]


class AssistantSpanFinder:
    """Locates the spans of conversations rendered by one template."""

    def __init__(self, template: ChatTemplate, ends: AnswerEnds, thoughts: Thoughts) -> None:
        self._template = template
        self._ends = ends
        self._thoughts = thoughts

    def locate_prompt(self, messages: Messages, tools: Sequence[Any] = ()) -> RenderedSpans:
        """A generation prompt and the spans of its messages' contents.

        Raises TemplateError when the template refuses the messages.
        """
        text = self._template.render(messages, tools, prompt=True).text
        contents = self._template.find_content_spans(messages, tools, text, prompt=True)
        return _spans(messages, text, (), contents)

    def locate(self, messages: Messages, tools: Sequence[Any] = ()) -> RenderedSpans:
        """Render a conversation and locate its assistant turns and the contents of its messages.

        Raises TemplateError when the template refuses the messages or hides an answer.
        """
        render = self._template.render(messages, tools)
        contents = self._template.find_content_spans(messages, tools, render.text)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        generations = _generations(messages, render, turns)
        run = _Run(messages, tools, render.text, contents, generations)
        last = [self._answer(run, turn, is_last=True) for turn in turns[-1:]]
        # If the last answer is trained as it is served, the others need not be trained in a place
        # that serving never has, such as behind a prompt without its thought.
        in_place_only = bool(last) and last[0].gap >= 0
        earlier = [self._answer(run, turn, in_place_only=in_place_only) for turn in turns[:-1]]
        return self._completed(run, [*earlier, *last])

    def _answer(
        self, run: _Run, turn: int, is_last: bool = False, in_place_only: bool = False
    ) -> AnswerSpan:
        # Many templates refuse to write a prompt after no messages at all.
        prompt = self._render(run.messages[:turn], run.tools, prompt=True)
        if prompt is not None and run.text.startswith(prompt):
            gap = self._thoughts.gap(run.text, prompt)
            start = len(prompt) + gap
            if is_last and not gap and self._thoughts.lacks_thought(run.text, prompt):
                gap = NO_THOUGHT
        elif in_place_only and prompt is not None:
            return AnswerSpan(turn, 0, 0, LEFT_OUT)
        else:
            start = self._start_without_prompt(run, turn, prompt or "")
            if prompt is None:
                gap = NO_PROMPT
            else:
                gap = NO_THOUGHT if opens_thought(prompt) else OTHER_PROMPT
        return AnswerSpan(turn, start, self._end(run, turn, start), gap)

    def _start_without_prompt(self, run: _Run, turn: int, prompt: str) -> int:
        """Where an answer begins whose generation prompt does not begin the text: at its content
        or, if it has calls or its content is not in the text as it was, behind the text that the
        template writes before a plain answer in its place. Else where text and prompt differ.
        """
        if turn in run.generations:
            return run.generations[turn][0]
        content = run.contents.get(turn)
        if content is not None and not run.messages[turn].get("tool_calls"):
            return content[0]
        other = self._with_placeholder(run, turn)
        before = other.text[: other.content_spans[turn][0]] if other else ""
        if before and run.text.startswith(before):
            return len(before)
        if content is not None:
            return content[0]
        start = self._ends.token_start(run.text, shared_length(run.text, prompt))
        if start >= max((end for i, (_, end) in run.contents.items() if i < turn), default=1):
            return start
        raise TemplateError(
            "the chat template's render does not show where an assistant turn's text is"
        )

    # -- the end of an answer --------------------------------------------------------------------

    def _end(self, run: _Run, turn: int, start: int) -> int:
        """The end of the token that ends an answer; the end of its text if there is no such token.

        No answer reaches into the content of a later message.
        """
        message, text = run.messages[turn], run.text
        limit = min(
            (first for i, (first, _) in run.contents.items() if i > turn and first >= start),
            default=len(text),
        )
        marked = run.generations[turn][1] if turn in run.generations else None
        content = run.contents.get(turn)
        if content is not None and not message.get("tool_calls") and start <= content[1] <= limit:
            return self._ends.after(text, content[1], limit, marked) or content[1]
        beginnings = self._beginnings(run, turn)
        for alone in beginnings:
            if text.startswith(alone) and start < len(alone) <= limit:
                end = self._ends.last_in(text, start, len(alone))
                return end or self._ends.after(text, len(alone), limit) or len(alone)
        other = self._with_placeholder(run, turn)
        after = other.text[other.content_spans[turn][1] :] if other else None
        if after is not None and text.endswith(after) and start <= len(text) - len(after) <= limit:
            end = len(text) - len(after)
            if not beginnings or any(_writes(alone, text, start, end) for alone in beginnings):
                return self._ends.after(text, end, limit) or end
        for alone in beginnings if message.get("tool_calls") else ():
            if alone.startswith(text[:start]):
                end = self._ends.after_shared(text, alone, start, limit)
                if end is not None:
                    return end
        if turn in run.generations:
            end = min(run.generations[turn][1], limit)
            return self._ends.after(text, end, limit) or end
        raise TemplateError(
            "the chat template's render does not show where an assistant turn's text ends"
        )

    def _beginnings(self, run: _Run, turn: int) -> list[str]:
        """The renders of the conversation up to and with this turn, in which all of the answer is
        written by the model. Many templates write a thought in the last turn only, so there is one
        with the turn's thought and one without.
        """
        message = run.messages[turn]
        without_thought = {k: v for k, v in message.items() if k not in THOUGHT_KEYS}
        variants = [message] if len(without_thought) == len(message) else [message, without_thought]
        texts = [self._render([*run.messages[:turn], each], run.tools) for each in variants]
        return [text for text in texts if text is not None]

    def _completed(self, run: _Run, answers: list[AnswerSpan]) -> RenderedSpans:
        """The spans, with the end of the last turn where the template leaves it out."""
        text, ends_in_answer = run.text, answers and answers[-1].turn == len(run.messages) - 1
        if ends_in_answer and not run.generations:
            text += self._ends.missing(bool(run.messages[-1].get("tool_calls")))
            if len(text) > len(run.text):
                answers[-1] = answers[-1]._replace(end=len(text))
        num_added = len(text) - len(run.text)
        return _spans(run.messages, text, tuple(answers), run.contents, num_added)

    def _render(self, messages: Messages, tools: Sequence[Any], prompt: bool = False) -> str | None:
        try:
            return self._template.render(messages, tools, prompt).text
        except TemplateError:
            return None

    def _with_placeholder(self, run: _Run, turn: int) -> MarkedText | None:
        """The run's render with a plain answer, its content marked, as this turn."""
        message = mark_content({"role": "assistant", "content": _PLACEHOLDER}, turn)
        messages = [*run.messages[:turn], message, *run.messages[turn + 1 :]]
        try:
            other = parse_marks(self._template.render_raw(messages, run.tools, False))
        except TemplateError:
            return None
        return other if turn in other.content_spans else None


def _writes(alone: str, text: str, start: int, end: int) -> bool:
    """Whether a render has all of `text[start:end]`, if perhaps with a thought inserted."""
    part = text[start:end]
    return part[shared_length(part, alone[start:]) :] in alone


def _spans(
    messages: Messages,
    text: str,
    answers: tuple[AnswerSpan, ...],
    contents: Mapping[int, Span],
    num_added: int = 0,
) -> RenderedSpans:
    context = tuple(span for i, span in contents.items() if messages[i]["role"] != "assistant")
    hidden = tuple(i for i, m in enumerate(messages) if m["content"].strip() and i not in contents)
    return RenderedSpans(text, answers, contents, context, hidden, num_added)


def _generations(messages: Messages, render: MarkedText, turns: Sequence[int]) -> dict[int, Span]:
    """The generation blocks' spans if there is one for each turn that contains its answer."""
    spans = render.generation_spans
    if len(spans) != len(turns):
        return {}
    for i, (start, end) in zip(turns, spans, strict=True):
        answer = str(messages[i].get("content") or "").rpartition("</think>")[2].strip()
        if answer not in render.text[start:end]:
            return {}
    return dict(zip(turns, spans, strict=True))
