"""Compiles a template for one shape of conversation, and proves the result on real renders.

The shape is the roles, and which contents are empty. A trace of the template gives the segments,
and traces of its generation prompts say whether the answers stand behind these for all contents.
Then the template runs on two conversations of that shape with texts of our own. The first shows
where the answers are, and the compiled form is used only if it agrees with both. A dataset's rows
take no part in this, so the content of one row cannot change how another row of its shape is
rendered.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.chat.compiled.segments import AnswerSegments, CompiledTemplate
from pipelines.chat.compiled.symbolic_text import ContentCondition
from pipelines.chat.compiled.tracer import Trace, Tracer
from pipelines.chat.encoder import byte_offsets
from pipelines.chat.spans import AnswerSpan, RenderedSpans, shared_length
from pipelines.chat.template import (
    CONTENT_OPEN,
    GENERATION_CLOSE,
    GENERATION_OPEN,
    TURN_BASE,
    TemplateError,
)
from pipelines.chat.thoughts import Thoughts

_PLAIN_PROOF = "text {} of a turn."
_SPACED_PROOF = "\n text {} of a turn \t\n"  # its white space shows what the template trims
# The marks of one slot, one mark of a generation block, or fixed text.
_TRACE_PARTS = re.compile("\ufdd0|\ufdd1|\ufdd2(.)(.)\ufdd3|[^\ufdd0-\ufdd3]+", re.DOTALL)
_SLOT = re.compile("\ufdd2(.)(.)\ufdd3", re.DOTALL)
_Segments = list[str | tuple[int, str]]


class TemplateCompiler:
    """Compiles one template. `locate` runs the template itself and gives the true spans."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any],
        locate: Callable[[list[dict[str, Any]]], RenderedSpans],
        thoughts: Thoughts,
        takes_parts: bool = False,
    ) -> None:
        self._tracer = Tracer(source, variables, takes_parts)
        self._locate = locate
        self._thought_tags = thoughts.tags

    def compile(self, roles: Sequence[str], empty: Sequence[bool]) -> CompiledTemplate | None:
        """The compiled template for conversations of these roles; None where it cannot be proven.

        `empty` says which contents are empty. The conversations have no tools and no tool calls.
        """
        turns = [i for i, role in enumerate(roles) if role == "assistant"]
        trace = self._tracer.trace(roles, empty)
        segments = _cut(trace) if trace else None
        if trace is None or segments is None or not {*turns} <= _turns_in(segments):
            return None
        conditions = [*trace.conditions]
        conditions += [ContentCondition(i, tag) for i in turns for tag in self._thought_tags]
        for turn in turns:
            more = self._prompt_conditions(trace, roles[:turn], empty[:turn])
            if more is None:
                return None
            conditions += more
        draft = CompiledTemplate(tuple(segments), (), tuple(dict.fromkeys(conditions)))
        contents = _proof_contents(_PLAIN_PROOF, empty)
        expected = self._proof(draft, roles, contents)
        compiled = _with_answers(draft, contents, expected) if expected else None
        if compiled is None or expected is None or not _agree(compiled, contents, expected):
            return None
        contents = _proof_contents(_SPACED_PROOF, empty)
        if not compiled.accepts(contents):  # the conditions exclude such texts from the fast path
            return compiled
        expected = self._proof(compiled, roles, contents)
        return compiled if expected and _agree(compiled, contents, expected) else None

    def _prompt_conditions(
        self, trace: Trace, roles: Sequence[str], empty: Sequence[bool]
    ) -> list[ContentCondition] | None:
        """The conditions under which a conversation begins, or does not begin, with the generation
        prompt of its first messages whatever their contents are; None if it depends on these.
        """
        prompt = self._tracer.trace(roles, empty, prompt=True)
        if prompt is None:  # many templates refuse to write a prompt after no messages at all
            return None if roles else []
        text, begin = _without_generation(trace), _without_generation(prompt)
        if text.startswith(begin):
            return [*prompt.conditions]
        position = shared_length(text, begin)
        slots = [m.span() for m in _SLOT.finditer(begin)]
        if any(first <= position < last for first, last in slots):
            return None
        conditions = [*prompt.conditions]
        slot = _SLOT.match(text, position)
        if slot:
            fixed = begin[position:].partition(CONTENT_OPEN)[0].strip()
            if not fixed:
                return None
            conditions.append(ContentCondition(ord(slot.group(1)) - TURN_BASE, fixed))
        return conditions

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


def _cut(trace: Trace) -> _Segments | None:
    """Cut a traced text at its marks; None if the template writes a content twice."""
    segments: _Segments = []
    for match in _TRACE_PARTS.finditer(trace.text):
        part = match.group()
        if part in (GENERATION_OPEN, GENERATION_CLOSE):
            continue
        if part[0] != CONTENT_OPEN:
            segments.append(part)
            continue
        turn = ord(match.group(1)) - TURN_BASE
        if turn in _turns_in(segments):
            return None
        segments.append((turn, match.group(2)))
    return segments


def _turns_in(segments: _Segments) -> set[int]:
    return {slot[0] for slot in segments if not isinstance(slot, str)}


def _with_answers(
    draft: CompiledTemplate, contents: Sequence[str], expected: RenderedSpans
) -> CompiledTemplate | None:
    """The draft with what a real render shows: its answers, and text that was added to it.

    None if the draft gives another text, or an answer's bounds are inside a content.
    """
    texts = draft.fill(contents)
    if "".join(texts) != expected.written:
        return None
    segments: _Segments = [*draft.segments]
    if expected.num_added:
        segments.append(expected.text[-expected.num_added :])
    compiled = replace(draft, segments=tuple(segments))
    texts = compiled.fill(contents)
    answers = []
    for answer in expected.answers:
        places = [_place(texts, segments, position) for position in (answer.start, answer.end)]
        if places[0] is None or places[1] is None:
            return None
        bounds = [
            (index, len(texts[index][:offset].encode()) if offset else 0)
            for index, offset in (places[0], places[1])
        ]
        gap = _gap_bytes(expected.text, answer)
        answers.append(AnswerSegments(answer.turn, *bounds[0], *bounds[1], gap))
    return replace(compiled, answers=tuple(answers))


def _place(texts: Sequence[str], segments: _Segments, position: int) -> tuple[int, int] | None:
    """The segment in which a position of the text is, and the characters before it there.

    None if the position is inside a content.
    """
    at = [*itertools.accumulate(map(len, texts), initial=0)]
    index = bisect.bisect_left(at, position)
    if at[index] == position:
        return index, 0
    return (index - 1, position - at[index - 1]) if isinstance(segments[index - 1], str) else None


def _proof_contents(text: str, empty: Sequence[bool]) -> list[str]:
    return ["" if no_text else text.format(i) for i, no_text in enumerate(empty)]


def _agree(compiled: CompiledTemplate, contents: Sequence[str], expected: RenderedSpans) -> bool:
    to_byte = byte_offsets(expected.text).tolist()
    answers = [
        (a.turn, to_byte[a.start], to_byte[a.end], _gap_bytes(expected.text, a))
        for a in expected.answers
    ]
    text = "".join(compiled.fill(contents))
    return text == expected.text and compiled.answer_bytes(contents) == answers


def _gap_bytes(text: str, answer: AnswerSpan) -> int:
    return (
        len(text[answer.start - answer.gap : answer.start].encode())
        if answer.gap > 0
        else answer.gap
    )


def _without_generation(trace: Trace) -> str:
    return trace.text.replace(GENERATION_OPEN, "").replace(GENERATION_CLOSE, "")
