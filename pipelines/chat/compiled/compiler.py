"""Compiles a template for one shape of conversation, and proves the result on real renders.

The shape is the roles, and which contents are empty. A trace of the template gives the segments;
then the template runs on two conversations of that shape with texts of our own. The compiled form
is used only if it gives the same text and assistant spans there. A dataset's rows take no part in
the proof, so the content of one row cannot change how another row of its shape is rendered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.chat.compiled.segments import AnswerSegments, CompiledTemplate, PromptSegments
from pipelines.chat.compiled.tracer import Trace, Tracer
from pipelines.chat.spans import RenderedSpans
from pipelines.chat.template import (
    CONTENT_CLOSE,
    CONTENT_OPEN,
    GENERATION_CLOSE,
    GENERATION_OPEN,
    TURN_BASE,
    TemplateError,
)

_PLAIN_PROOF = "text {} of a turn."
_SPACED_PROOF = "\n text {} of a turn \t\n"  # its white space shows what the template trims
# The marks of one slot, one mark of a generation block, or fixed text.
_TRACE_PARTS = re.compile("\ufdd0|\ufdd1|\ufdd2(.)(.)\ufdd3|[^\ufdd0-\ufdd3]+", re.DOTALL)


class TemplateCompiler:
    """Compiles one template. `locate` runs the template itself and gives the true spans; `stop` is
    the text that ends an assistant turn, if there is one.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any],
        locate: Callable[[list[dict[str, Any]]], RenderedSpans],
        stop: str | None,
    ) -> None:
        self._tracer = Tracer(source, variables)
        self._locate = locate
        self._stop = stop or ""

    def compile(self, roles: Sequence[str], empty: Sequence[bool]) -> CompiledTemplate | None:
        """The compiled template for conversations of these roles; None where it cannot be proven.

        `empty` says which contents are empty. The conversations have no tools and no tool calls.
        """
        trace = self._tracer.trace(roles, empty)
        if trace is None:
            return None
        compiled = self._cut(trace, [i for i, role in enumerate(roles) if role == "assistant"])
        if compiled is None:
            return None
        compiled = self._with_prompt(compiled, trace, roles, empty)
        contents = _proof_contents(_PLAIN_PROOF, empty)
        expected = self._proof(compiled, roles, contents)
        if expected is None:
            return None
        compiled = _with_leads(compiled, expected, contents)
        if not _agree(compiled, contents, expected):
            return None
        contents = _proof_contents(_SPACED_PROOF, empty)
        if not compiled.accepts(contents):  # the conditions exclude such texts from the fast path
            return compiled
        expected = self._proof(compiled, roles, contents)
        return compiled if expected and _agree(compiled, contents, expected) else None

    def _proof(
        self, compiled: CompiledTemplate, roles: Sequence[str], contents: Sequence[str]
    ) -> RenderedSpans | None:
        if not compiled.accepts(contents):
            return None
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        try:
            return self._locate(messages)
        except TemplateError:
            return None

    def _cut(self, trace: Trace, turns: Sequence[int]) -> CompiledTemplate | None:
        """Cut a traced text at its marks; None if an answer's segments are not clear."""
        segments: list[str | tuple[int, str]] = []
        generations: list[list[int]] = []
        slots: dict[int, int] = {}
        for match in _TRACE_PARTS.finditer(trace.text):
            part = match.group()
            if part == GENERATION_OPEN:
                generations.append([len(segments)])
            elif part == GENERATION_CLOSE:
                generations[-1].append(len(segments))
            elif part[0] == CONTENT_OPEN:
                turn = ord(match.group(1)) - TURN_BASE
                if turn in slots:  # the template writes a content twice
                    return None
                slots[turn] = len(segments)
                segments.append((turn, match.group(2)))
            else:
                segments.append(part)
        if any(len(g) != 2 for g in generations) or any(turn not in slots for turn in turns):
            return None
        spans = generations
        if len(generations) != len(turns):
            spans = [[slots[i], slots[i] + 1] for i in turns]
        if any(not a <= slots[i] < b for i, (a, b) in zip(turns, spans, strict=True)):
            return None
        answers = [
            self._answer(segments, turn, first, last)
            for turn, (first, last) in zip(turns, spans, strict=True)
        ]
        return CompiledTemplate(tuple(segments), tuple(answers), trace.conditions)

    def _answer(
        self, segments: Sequence[str | tuple[int, str]], turn: int, first: int, last: int
    ) -> AnswerSegments:
        """The answer with the stop text that follows it, unless it includes that."""
        end, after = segments[last - 1], segments[last] if last < len(segments) else ""
        includes_stop = isinstance(end, str) and end.endswith(self._stop)
        follows = isinstance(after, str) and after.startswith(self._stop)
        tail = self._stop if follows and not includes_stop else ""
        return AnswerSegments(turn, first, last, 0, len(tail), len(tail.encode()))

    def _with_prompt(
        self, compiled: CompiledTemplate, trace: Trace, roles: Sequence[str], empty: Sequence[bool]
    ) -> CompiledTemplate:
        """The compiled template with the end of its last answer's prompt, by a trace of that."""
        last = compiled.answers[-1].turn if compiled.answers else 0
        prompt = self._tracer.trace(roles[:last], empty[:last], prompt=True)
        if (
            prompt is None
            or not _without_generation(trace).startswith(_without_generation(prompt))
            or not {*prompt.conditions} <= {*trace.conditions}
        ):
            return compiled
        before, _, tail = _without_generation(prompt).rpartition(CONTENT_CLOSE)
        count = 0
        if before:
            turn = ord(before[before.rindex(CONTENT_OPEN) + 1]) - TURN_BASE
            slots = [slot if isinstance(slot, str) else slot[0] for slot in compiled.segments]
            count = slots.index(turn) + 1
        return replace(compiled, prompt=PromptSegments(count, tail, len(tail.encode())))


def _proof_contents(text: str, empty: Sequence[bool]) -> list[str]:
    return ["" if no_text else text.format(i) for i, no_text in enumerate(empty)]


def _agree(compiled: CompiledTemplate, contents: Sequence[str], expected: RenderedSpans) -> bool:
    spans = compiled.locate(contents)
    return (spans.text, spans.assistant_spans) == (expected.text, expected.assistant_spans)


def _without_generation(trace: Trace) -> str:
    return trace.text.replace(GENERATION_OPEN, "").replace(GENERATION_CLOSE, "")


def _with_leads(
    compiled: CompiledTemplate, expected: RenderedSpans, contents: Sequence[str]
) -> CompiledTemplate:
    """The compiled template with the white space before answers that a real render includes."""
    answers = []
    for answer, true, span in zip(
        compiled.answers,
        expected.assistant_spans,
        compiled.locate(contents).assistant_spans,
        strict=False,  # if their numbers differ, the proof fails afterwards
    ):
        before = compiled.segments[answer.first - 1] if answer.first else ""
        lead = span[1] - true[1]
        fixed = isinstance(before, str) and 0 < lead <= len(before) and before.isascii()
        answers.append(replace(answer, lead=lead) if fixed else answer)
    return replace(compiled, answers=tuple(answers))
