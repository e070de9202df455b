"""Conversations as text with their spans, and generation prompts, by one chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.chat.answer_ends import AnswerEnds
from pipelines.chat.assistant_spans import AssistantSpanFinder
from pipelines.chat.call_ids import with_call_ids
from pipelines.chat.compiled import CompiledTemplates, TemplateCompiler
from pipelines.chat.encoder import byte_offsets
from pipelines.chat.fallbacks import apply_fallbacks, probe_capabilities
from pipelines.chat.probes import CALLING, RESULT
from pipelines.chat.rendered import RenderedText
from pipelines.chat.spans import LEFT_OUT, OTHER_PROMPT, ByteSpans, PlainSpans, RenderedSpans, Span
from pipelines.chat.special_tokens import InjectionGuard, SpecialTokens
from pipelines.chat.template import ChatTemplate, Messages, TemplateError, spells_marks
from pipelines.chat.thoughts import probe_thoughts
from pipelines.chat.tokenizer_spec import TokenizerSpec
from pipelines.core.conversation import Conversation, Turn


class TemplateRenderer:
    """One template, and what is known of it: its capabilities, its ends, its thoughts.

    `compiled` is None if the fast path is switched off.
    """

    def __init__(
        self,
        template: ChatTemplate,
        spec: TokenizerSpec,
        special_tokens: SpecialTokens,
        compiled: bool,
    ) -> None:
        """Raises TemplateError when the template cannot be used at all."""
        self._template = template
        template.check_texts()
        self.capabilities = probe_capabilities(template)
        self.thoughts = probe_thoughts(template, self.capabilities.thought_key, spec.arguments)
        needs_ids = self.capabilities.call_ids
        calling, result = with_call_ids([CALLING, RESULT]) if needs_ids else (CALLING, RESULT)
        self.ends = AnswerEnds(template, special_tokens, calling, result)
        self._finder = AssistantSpanFinder(template, self.ends, self.thoughts)
        self._guard = InjectionGuard(template, special_tokens)
        self.compiled: CompiledTemplates | None = None
        if compiled:
            compiler = TemplateCompiler(
                template.source,
                spec.variables,
                self._finder.locate,
                self.thoughts,
                template.takes_parts,
            )
            system = ["system"] if self.capabilities.system else []
            roles = {"user", "assistant", *system}
            self.compiled = CompiledTemplates(compiler, special_tokens, roles)

    def prompt(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]]
    ) -> tuple[str, PlainSpans | None]:
        """The text of a generation prompt, and the spans in it that stay plain.

        The spans are None if no message spells a special token. Raises TemplateError when the
        template refuses the messages.
        """
        messages, tools, _ = apply_fallbacks(messages, tools, self.capabilities)
        if not self._guard.contains_special_tokens(messages, tools):
            return self._template.render(messages, tools, prompt=True).text, None
        spans = self._finder.locate_prompt(messages, tools)
        return spans.text, self._guard.protect(spans, messages, tools, prompt=True)

    def render(self, conversation: Conversation) -> RenderedText:
        """The text of a conversation and its spans. Raises TemplateError when it is refused."""
        turns, tools = conversation.turns, conversation.tools
        if self.compiled and not tools:
            rendered = self.compiled.render(turns)
            if rendered is not None:
                return rendered
        messages = conversation.messages()
        if spells_marks([messages, tools]):
            raise TemplateError("the text contains a Unicode noncharacter of U+FDD0 to U+FDD3")
        if not self.capabilities.parallel_calls and any(len(t.tool_calls) > 1 for t in turns):
            raise TemplateError(
                "the chat template writes one tool call a turn, and a turn has more"
            )
        messages, tools, message_index = apply_fallbacks(messages, tools, self.capabilities)
        spans = self._finder.locate(messages, tools)
        by_message = _answering_turns(turns, message_index)
        to_byte = byte_offsets(spans.text)
        label_spans: list[float] = []
        num_left_out = 0
        for answer in sorted(spans.answers, key=lambda answer: answer.start):
            turn = by_message.get(answer.turn)
            if turn is None or not turn.train or not turn.weight:
                continue
            if answer.gap == LEFT_OUT:
                num_left_out += 1
                continue
            start, end = int(to_byte[answer.start]), int(to_byte[answer.end])
            gap = start - int(to_byte[answer.start - answer.gap]) if answer.gap > 0 else answer.gap
            label_spans += start, end, turn.weight, gap
        injection = None
        if self._guard.contains_special_tokens(messages, tools):
            injection = self._guard.protect(spans, messages, tools)
        masked = [span for i, turn in by_message.items() for span in _masked_spans(turn, i, spans)]
        num_thoughts, num_dropped = self._thought_counts(by_message, spans)
        byte_spans = ByteSpans(
            label_spans,
            to_byte[np.array(spans.context, np.int64).reshape(-1)].tolist(),
            to_byte[np.array(masked, np.int64).reshape(-1)].tolist(),
            num_left_out,
            num_thoughts,
            num_dropped,
        )
        return RenderedText(spans.text, int(to_byte[-1]), byte_spans, injection)

    def _thought_counts(
        self, by_message: Mapping[int, Turn], spans: RenderedSpans
    ) -> tuple[int, int]:
        """The thoughts of a conversation, and those that the template leaves out.

        Raises TemplateError if it leaves out that of the last answer: other templates show it.
        """
        num_thoughts = num_dropped = 0
        for answer in spans.answers:
            turn = by_message[answer.turn]
            thought = _thought(turn)
            num_thoughts += bool(thought)
            in_place = answer.gap not in (LEFT_OUT, OTHER_PROMPT)
            text = spans.text[answer.start : answer.end] if in_place else spans.text
            if thought and thought not in text:
                num_dropped += 1
                must_show = answer is spans.answers[-1] or not self.capabilities.thought_key
                if turn.reasoning and turn.train and must_show:
                    raise TemplateError(
                        "the chat template does not show the thought of an answer (its "
                        "reasoning_content, reasoning or thinking); set data.chat_template to a "
                        "template that does"
                    )
        return num_thoughts, num_dropped


def _answering_turns(turns: Sequence[Turn], message_index: Sequence[int]) -> dict[int, Turn]:
    """The assistant turns by message, as fallbacks may merge turns or add messages."""
    numbered = zip(turns, message_index, strict=True)
    return {i: turn for turn, i in numbered if turn.role == "assistant"}


def _thought(turn: Turn) -> str:
    """An assistant's thought, in its own field or between tags at the start of its text."""
    if turn.reasoning:
        return turn.reasoning.strip()
    before, closing, _ = turn.content.partition("</think>")
    return before.rpartition("<think>")[2].strip() if closing else ""


def _masked_spans(turn: Turn, message: int, spans: RenderedSpans) -> list[Span]:
    """Where a turn's masked parts are in the text.

    Raises TemplateError if the template does not write the turn's text as it is.
    """
    answer = next(answer for answer in spans.answers if answer.turn == message)
    if not turn.masked or answer.gap == LEFT_OUT:
        return []
    text = turn.content.strip()
    first, last = spans.contents.get(message, (answer.start, answer.end))
    start = spans.text.find(text, first, last)
    again = spans.text.find(text, start + 1, last)
    if start < 0 or (again >= 0 and message not in spans.contents):
        raise TemplateError(
            "the chat template does not write an answer as it is, so the part of it that is not "
            "to be trained cannot be told"
        )
    moved = start - (len(turn.content) - len(turn.content.lstrip()))
    bounds = [(max(a + moved, start), min(b + moved, start + len(text))) for a, b in turn.masked]
    return [(a, b) for a, b in bounds if a < b]
