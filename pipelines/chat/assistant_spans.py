"""Locates the assistant's answers in a rendered conversation, for any template.

The template runs on the conversation. An answer's span is what a `{% generation %}` block wrote. If
the template has no such blocks, or they do not contain the answers, a second render with marks
around the contents shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.chat.spans import RenderedSpans, Span
from pipelines.chat.special_tokens import SpecialTokens
from pipelines.chat.template import (
    ChatTemplate,
    MarkedText,
    Messages,
    TemplateError,
    mark_content,
    parse_marks,
)

_PLACEHOLDER = "the answer"


def find_stop(template: ChatTemplate, special_tokens: SpecialTokens) -> tuple[str, int] | None:
    """The text from the end of an answer to the end of the special token that ends the turn, and
    that token's id; None if no special token follows. Raises TemplateError.
    """
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    text = template.render(probe).text
    content = template.find_content_spans(probe, (), text).get(1)
    match = special_tokens.pattern.search(text, content[1]) if content else None
    if content is None or match is None:
        return None
    return text[content[1] : match.end()], special_tokens.ids[match.group()]


class _Run(NamedTuple):
    """One run of the template: its input, and the text that it wrote."""

    messages: Messages
    tools: Sequence[Any]
    prompt: bool
    text: str


class AssistantSpanFinder:
    """Locates the spans of conversations rendered by one template.

    `stop` is the text that ends an assistant turn (see `find_stop`), if there is one.
    """

    def __init__(self, template: ChatTemplate, stop: str | None) -> None:
        self._template = template
        self._stop = stop

    def locate(
        self, messages: Messages, tools: Sequence[Any] = (), prompt: bool = False
    ) -> RenderedSpans:
        """Render the messages and locate their spans; with `prompt`, only those of the contents.

        Raises TemplateError when the template refuses the messages or hides an answer.
        """
        render = self._template.render(messages, tools, prompt)
        contents = self._template.find_content_spans(messages, tools, render.text, prompt)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        run = _Run(messages, tools, prompt, render.text)
        answers = self._marked_answers(run, render.generation_spans, turns)
        if answers is None:
            answers = [self._unmarked_answer(run, i, contents.get(i)) for i in turns]
        answer_of = dict(zip(turns, answers, strict=True))
        # A generation prompt is only encoded, so nobody needs the spans of the answers in it.
        assistant_spans = tuple(
            (i, *self._complete_span(run, i, span, contents.get(i)))
            for i, span in answer_of.items()
            if not prompt
        )
        context = tuple(span for i, span in contents.items() if i not in answer_of)
        hidden = any(
            m["content"].strip() and i not in contents and i not in answer_of
            for i, m in enumerate(messages)
        )
        if hidden:
            return RenderedSpans(render.text, assistant_spans, None, context)
        rebuilt = [
            self._strip_stop(render.text, *span)
            for i, span in answer_of.items()
            if i not in contents
        ]
        content_spans = tuple(sorted([*contents.values(), *rebuilt]))
        return RenderedSpans(render.text, assistant_spans, content_spans, context)

    def _complete_span(self, run: _Run, turn: int, span: Span, content: Span | None) -> Span:
        prompt = self._prompt_before(run, turn)
        return _start(run.text, prompt, span[0]), self._end_with_stop(run.text, *span, content)

    def _strip_stop(self, text: str, start: int, end: int) -> Span:
        ends_with_stop = self._stop and text.endswith(self._stop, start, end)
        return start, end - len(self._stop or "") if ends_with_stop else end

    def _end_with_stop(self, text: str, start: int, end: int, content: Span | None) -> int:
        """The end of the answer, moved behind the stop text that follows it.

        Stop text that the content itself ends with does not count as the stop.
        """
        stop = self._stop
        includes_stop = (
            stop is not None
            and text.endswith(stop, start, end)
            and not (content and content[1] == end)
        )
        if stop and not includes_stop and text.startswith(stop, end):
            return end + len(stop)
        return end

    def _marked_answers(
        self, run: _Run, spans: Sequence[Span], turns: Sequence[int]
    ) -> list[Span] | None:
        """The generation blocks' spans if there is one for each turn that contains its answer."""
        if len(spans) != len(turns) or not turns:
            return None
        for i, (start, end) in zip(turns, spans, strict=True):
            answer = str(run.messages[i].get("content") or "").rpartition("</think>")[2].strip()
            if answer not in run.text[start:end]:
                return None
        return list(spans)

    def _prompt_before(self, run: _Run, turn: int) -> int | None:
        """Length of the turn's generation prompt; None where the render does not begin with it."""
        # Many templates refuse to write a prompt after no messages at all.
        prompt = self._render(run.messages[:turn], run.tools, True)
        return len(prompt) if prompt is not None and run.text.startswith(prompt) else None

    def _render(self, messages: Messages, tools: Sequence[Any], prompt: bool) -> str | None:
        try:
            return self._template.render(messages, tools, prompt).text
        except TemplateError:
            return None

    def _unmarked_answer(self, run: _Run, turn: int, content: Span | None) -> Span:
        """An answer's span without generation blocks.

        It is the content. Where the template cut the content or added tool calls, it is everything
        from the generation prompt (or from the end of a thought that the template inserted after
        the prompt) to the end of the turn.
        """
        if content is not None and not run.messages[turn].get("tool_calls"):
            return content
        start, end = self._answer_start(run, turn, content), None
        if start is not None:
            end = self._answer_end(run, turn, start)
        if start is None or end is None:
            raise TemplateError(
                "the chat template's render does not show where an assistant turn's text is"
            )
        return start, end

    def _answer_start(self, run: _Run, turn: int, content: Span | None) -> int | None:
        if content is not None:
            return content[0]
        message = {**run.messages[turn], "content": _PLACEHOLDER}
        other = self._with_message(run, turn, message)
        before = other.text[: other.content_spans[turn][0]] if other else None
        # The placeholder has no thought. If the turn's own content has one, the renders differ from
        # there on, and everything after the prompt belongs to the answer.
        if before and run.text.startswith(before):
            return len(before)
        return self._prompt_before(run, turn)

    def _answer_end(self, run: _Run, turn: int, start: int) -> int | None:
        """By the text that follows a plain answer in this place. If the template refuses a plain
        answer there, by the text that it writes for the conversation up to this turn.
        """
        other = self._with_message(run, turn, {"role": "assistant", "content": _PLACEHOLDER})
        after = other.text[other.content_spans[turn][1] :] if other else None
        if after is not None and run.text.endswith(after) and len(run.text) - len(after) >= start:
            return len(run.text) - len(after)
        beginning = self._render(run.messages[: turn + 1], run.tools, False)
        if beginning is None or not run.text.startswith(beginning) or len(beginning) < start:
            return None
        stop = beginning.rfind(self._stop, start) if self._stop else -1
        return len(beginning) if stop < 0 else stop

    def _with_message(self, run: _Run, turn: int, message: Mapping[str, Any]) -> MarkedText | None:
        """The run's render with another message, content marked, as this turn."""
        messages = [*run.messages[:turn], mark_content(message, turn), *run.messages[turn + 1 :]]
        try:
            other = parse_marks(self._template.render_raw(messages, run.tools, run.prompt))
        except TemplateError:
            return None
        return other if turn in other.content_spans else None


def _start(text: str, prompt: int | None, start: int) -> int:
    """The start of an answer: never inside its generation prompt, and with the white space that
    follows the prompt.

    Other text between the prompt and the answer (an empty thought that the template inserts, say)
    does not belong to the answer.
    """
    if prompt is not None and (prompt > start or text[prompt:start].isspace()):
        return prompt
    return start
