"""From a conversation to its rendered text with the trained places in it, by the shortest way that is exact.

1. A plan: the template was traced for this shape of conversation (roles, which turns are empty), so the text is fixed
   pieces and the turns' texts joined, and every place follows from their lengths.
2. Otherwise the template runs on the conversation, and the answers lie where its `{% generation %}` blocks wrote or, if
   it has none or they do not hold the answers, where a marked second render shows the contents.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.chat.template import (
    CONTENT_CLOSE,
    CONTENT_OPEN,
    GENERATION_CLOSE,
    GENERATION_OPEN,
    TURN_BASE,
    ChatTemplate,
    Messages,
    Span,
    TemplateError,
    parse_marks,
)
from pipelines.chat.trace import AS_IS, LSTRIP, RSTRIP, STRIP, Trace, Tracer

_TRIM = {AS_IS: lambda text: text, STRIP: str.strip, LSTRIP: str.lstrip, RSTRIP: str.rstrip}
_PLACEHOLDER = "the answer"


@dataclass(frozen=True)
class Layout:
    """A rendered text; `trained` holds (turn, start, end), `contents` what came from messages, all in characters.

    `contents` is None where the template hides it.
    """

    text: str
    trained: tuple[tuple[int, int, int], ...]
    contents: tuple[Span, ...] | None


@dataclass(frozen=True)
class Plan:
    """Fixed pieces and slots (turn, mode); `trained` tells the turn and the pieces `first:last` of every answer."""

    pieces: tuple[str | tuple[int, str], ...]
    trained: tuple[tuple[int, int, int], ...]
    absent: tuple[tuple[int, str], ...]

    def fits(self, contents: Sequence[str]) -> bool:
        return not any(part in contents[turn] for turn, part in self.absent)

    def texts(self, contents: Sequence[str]) -> list[str]:
        """The pieces with the contents in them; their concatenation is the render."""
        return [p if type(p) is str else _TRIM[p[1]](contents[p[0]]) for p in self.pieces]

    def layout(self, contents: Sequence[str]) -> Layout:
        texts = self.texts(contents)
        at = [0, *itertools.accumulate(map(len, texts))]
        slots = tuple((at[i], at[i + 1]) for i, piece in enumerate(self.pieces) if type(piece) is not str)
        return Layout("".join(texts), tuple((turn, at[a], at[b]) for turn, a, b in self.trained), slots)


class Layouter:
    """Lays out messages with one template. `stop` is the control token's text that ends an assistant turn, if any."""

    def __init__(self, template: ChatTemplate, tracer: Tracer) -> None:
        self._template = template
        self._tracer = tracer
        self._plans: dict[tuple[Any, ...], Plan | None] = {}
        self.stop: str | None = None

    def plan(self, messages: Messages, contents: Sequence[str]) -> Plan | None:
        """The plan for messages of plain text; None when the template must run on them. No tools, no tool calls."""
        shape = (*[m["role"] for m in messages], *[not c for c in contents])
        try:
            plan = self._plans[shape]
        except KeyError:
            plan = self._plans[shape] = self._make_plan(messages, contents)
        return plan if plan is not None and plan.fits(contents) else None

    def lay_out(self, messages: Messages, tools: Sequence[Any] = (), prompt: bool = False) -> Layout:
        """Run the template on the messages. Raises TemplateError when it refuses them or hides an answer."""
        found = self._template.render(messages, tools, prompt)
        located = self._template.render_contents(messages, tools, found.text, prompt)
        contents = tuple(sorted(located.contents.values())) if located else None
        if prompt:
            return Layout(found.text, (), contents)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        spans = self._marked_answers(found.text, found.generations, messages, turns, tools)
        if spans is None:
            inside = located.contents if located else {}
            spans = [self._unmarked_answer(found.text, inside.get(i), messages, i, tools) for i in turns]
        trained = ((i, a, self._with_stop(found.text, a, b)) for i, (a, b) in zip(turns, spans, strict=True))
        return Layout(found.text, tuple(trained), contents)

    def _with_stop(self, text: str, start: int, end: int) -> int:
        """The end of the answer, moved behind the stop text when this follows the answer."""
        stop = self.stop
        if stop and not text.endswith(stop, start, end) and text.startswith(stop, end):
            return end + len(stop)
        return end

    def _marked_answers(
        self, text: str, spans: Sequence[Span], messages: Messages, turns: Sequence[int], tools: Sequence[Any]
    ) -> list[Span] | None:
        """The generation blocks' spans if they are the answers: one a turn, holding its text, and no prompt."""
        if len(spans) != len(turns) or not turns:
            return None
        checked = []
        for i, (start, end) in zip(turns, spans, strict=True):
            answer = str(messages[i].get("content") or "").rpartition("</think>")[2].strip()
            if answer not in text[start:end]:
                return None
            header = self._prompt_before(text, messages, i, tools)
            checked.append((max(start, header) if header is not None and header <= end else start, end))
        return checked

    def _prompt_before(self, text: str, messages: Messages, turn: int, tools: Sequence[Any]) -> int | None:
        """Length of the generation prompt of a turn when the whole render begins with it."""
        try:
            prompt = self._template.render(messages[:turn], tools, prompt=True).text
        except TemplateError:  # many templates refuse to answer nothing
            return None
        return len(prompt) if text.startswith(prompt) else None

    def _unmarked_answer(
        self, text: str, content: Span | None, messages: Messages, turn: int, tools: Sequence[Any]
    ) -> Span:
        """An answer's span without marks: its content, or all between its generation prompt and the end of its turn."""
        if content is not None and not messages[turn].get("tool_calls"):
            return content
        mark = {"role": "assistant", "content": f"{CONTENT_OPEN}{chr(TURN_BASE)}{_PLACEHOLDER}{CONTENT_CLOSE}"}
        stand_in = [*messages[:turn], mark, *messages[turn + 1 :]]
        try:
            other = parse_marks(self._template.render_raw(stand_in, tools, False))
        except TemplateError:
            other = None
        start = self._prompt_before(text, messages, turn, tools)
        if other is None or 0 not in other.contents or start is None:
            raise TemplateError("the chat template's render does not show where an assistant turn's text lies")
        after = other.text[other.contents[0][1] :]
        if not text.endswith(after) or len(text) - len(after) < start:
            raise TemplateError("the chat template's render does not show where an assistant turn's text ends")
        return start, len(text) - len(after)

    # -- plans ---------------------------------------------------------------------------------------------------

    def _make_plan(self, messages: Messages, contents: Sequence[str]) -> Plan | None:
        roles, empty = [m["role"] for m in messages], [not c for c in contents]
        trace = self._tracer.trace(roles, empty)
        if trace is None:
            return None
        plan = self._plan_from(trace, [i for i, role in enumerate(roles) if role == "assistant"])
        if plan is None or not plan.fits(contents):
            return plan
        # The trace proves the plan; running the template once on real contents proves the tracing.
        try:
            return (
                plan
                if plan.layout(contents) == replace(self.lay_out(messages), contents=plan.layout(contents).contents)
                else None
            )
        except TemplateError:
            return None

    def _plan_from(self, trace: Trace, turns: Sequence[int]) -> Plan | None:
        """Cut a traced text at its marks; None when an answer cannot be placed in it."""
        pieces: list[str | tuple[int, str]] = []
        generations: list[list[int]] = []
        slots: dict[int, int] = {}
        for match in re.finditer("\ufdd0|\ufdd1|\ufdd2(.)(.)\ufdd3|[^\ufdd0-\ufdd3]+", trace.text, re.DOTALL):
            token = match.group()
            if token == GENERATION_OPEN:
                generations.append([len(pieces)])
            elif token == GENERATION_CLOSE:
                generations[-1].append(len(pieces))
            elif token[0] == CONTENT_OPEN:
                turn = ord(match.group(1)) - TURN_BASE
                if turn in slots:
                    return None
                slots[turn] = len(pieces)
                pieces.append((turn, match.group(2)))
            else:
                pieces.append(token)
        if any(len(g) != 2 for g in generations) or any(turn not in slots for turn in turns):
            return None
        spans = generations if len(generations) == len(turns) else [[slots[i], slots[i] + 1] for i in turns]
        if any(not a <= slots[i] < b for i, (a, b) in zip(turns, spans, strict=True)):
            return None
        return self._with_stops(pieces, list(zip(turns, spans, strict=True)), trace.absent)

    def _with_stops(
        self,
        pieces: list[str | tuple[int, str]],
        spans: list[tuple[int, list[int]]],
        absent: tuple[tuple[int, str], ...],
    ) -> Plan:
        """Move each answer's end behind the stop text where this begins the next piece, cutting that piece in two."""
        stop = self.stop
        for number in range(len(spans) - 1, -1, -1):
            _, span = spans[number]
            after = pieces[span[1]] if span[1] < len(pieces) else None
            before = pieces[span[1] - 1]
            if not stop or (isinstance(before, str) and before.endswith(stop)):
                continue
            if isinstance(after, str) and after.startswith(stop):
                pieces[span[1] : span[1] + 1] = [stop, after[len(stop) :]]
                for _, later in spans[number + 1 :]:
                    later[:] = [later[0] + 1, later[1] + 1]
                span[1] += 1
        return Plan(tuple(pieces), tuple((turn, a, b) for turn, (a, b) in spans), absent)


def contents_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The messages' texts, "" where there is none."""
    return [m["content"] for m in messages]
