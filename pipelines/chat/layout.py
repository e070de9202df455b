"""From a conversation to its rendered text with the trained places in it, by the shortest way that is exact.

1. A plan: the template was traced for this shape of conversation (roles, which turns are empty), so the text is fixed
   pieces and the turns' texts joined, and every place follows from their lengths.
2. Otherwise the template runs on the conversation, and the answers lie where its `{% generation %}` blocks wrote or, if
   it has none or they do not hold the answers, where a marked second render shows the contents.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.chat.template import (
    CONTENT_OPEN,
    GENERATION_CLOSE,
    GENERATION_OPEN,
    TURN_BASE,
    ChatTemplate,
    Messages,
    Span,
    TemplateError,
    mark_content,
    parse_marks,
)
from pipelines.chat.trace import AS_IS, LSTRIP, RSTRIP, STRIP, Absence, Trace, Tracer

_TRIM = {STRIP: str.strip, LSTRIP: str.lstrip, RSTRIP: str.rstrip}
_PLACEHOLDER = "the answer"
_PROOFS = ("text {} of a turn.", "\n text {} of a turn \t\n")  # white space shows what a template trims


@dataclass(frozen=True)
class Layout:
    """A rendered text; `trained` holds (turn, start, end), `contents` what came from messages, all in characters.

    `contents` is None where the template hides it. `others` is what of it other than assistant turns said.
    """

    text: str
    trained: tuple[tuple[int, int, int], ...]
    contents: tuple[Span, ...] | None
    others: tuple[Span, ...]


@dataclass(frozen=True)
class PlannedAnswer:
    """The pieces `first:last` of an answer, with `lead` characters of the piece before and `tail` of the next."""

    turn: int
    first: int
    last: int
    lead: int = 0
    tail: int = 0
    tail_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """Fixed pieces and slots (turn, mode), and where the answers lie among them."""

    pieces: tuple[str | tuple[int, str], ...]
    answers: tuple[PlannedAnswer, ...]
    absent: tuple[Absence, ...]

    def fits(self, contents: Sequence[str]) -> bool:
        return all(absence.holds(contents[absence.turn]) for absence in self.absent)

    @functools.cached_property
    def _slots(self) -> list[tuple[int, int, str]]:
        return [(i, *piece) for i, piece in enumerate(self.pieces) if not isinstance(piece, str)]

    @functools.cached_property
    def others(self) -> list[int]:
        """The pieces that hold what turns other than the assistant's said."""
        answering = {answer.turn for answer in self.answers}
        return [i for i, turn, _ in self._slots if turn not in answering]

    def texts(self, contents: Sequence[str]) -> list[str]:
        """The pieces with the contents in them; their concatenation is the render."""
        texts: list[Any] = [*self.pieces]
        for i, turn, mode in self._slots:
            texts[i] = contents[turn] if mode == AS_IS else _TRIM[mode](contents[turn])
        return texts

    def layout(self, contents: Sequence[str]) -> Layout:
        texts = self.texts(contents)
        at = [0, *itertools.accumulate(map(len, texts))]
        slots = tuple((at[i], at[i + 1]) for i, piece in enumerate(self.pieces) if type(piece) is not str)
        trained = tuple((x.turn, at[x.first] - x.lead, at[x.last] + x.tail) for x in self.answers)
        return Layout("".join(texts), trained, slots, tuple((at[i], at[i + 1]) for i in self.others))


class Layouter:
    """Lays out messages with one template. `stop` is the control token's text that ends an assistant turn, if any."""

    def __init__(self, template: ChatTemplate, tracer: Tracer) -> None:
        self._template = template
        self._tracer = tracer
        self._plans: dict[tuple[Any, ...], Plan | None] = {}
        self.stop: str | None = None

    def plan(self, roles: Sequence[str], contents: Sequence[str]) -> Plan | None:
        """The plan for turns of plain text; None when the template must run on them. No tools, no tool calls."""
        shape = (*roles, *[not c for c in contents])
        if shape not in self._plans:
            self._plans[shape] = self._proven(roles, [not c for c in contents])
        plan = self._plans[shape]
        return plan if plan is not None and (not plan.absent or plan.fits(contents)) else None

    def lay_out(self, messages: Messages, tools: Sequence[Any] = (), prompt: bool = False) -> Layout:
        """Run the template on the messages. Raises TemplateError when it refuses them or hides an answer."""
        found = self._template.render(messages, tools, prompt)
        inside = self._template.find_contents(messages, tools, found.text, prompt)
        turns = [] if prompt else [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        spans = self._marked_answers(found.text, found.generations, messages, turns, tools)
        if spans is None:
            spans = [self._unmarked_answer(found.text, inside.get(i), messages, i, tools) for i in turns]
        headers = [self._prompt_before(found.text, messages, i, tools) for i in turns]
        trained = tuple(
            (i, _start(found.text, header, a), self._with_stop(found.text, a, b, inside.get(i)))
            for i, header, (a, b) in zip(turns, headers, spans, strict=True)
        )
        hidden = any(m["content"].strip() and i not in inside for i, m in enumerate(messages) if i not in turns)
        answers = [
            self._without_stop(found.text, a, b) for i, (a, b) in zip(turns, spans, strict=True) if i not in inside
        ]
        others = tuple(span for i, span in inside.items() if i not in turns)
        return Layout(found.text, trained, None if hidden else tuple(sorted([*inside.values(), *answers])), others)

    def _without_stop(self, text: str, start: int, end: int) -> Span:
        return start, end - len(self.stop) if self.stop and text.endswith(self.stop, start, end) else end

    def _with_stop(self, text: str, start: int, end: int, content: Span | None) -> int:
        """The end of the answer, moved behind the stop text when this follows the answer. The same text typed at the
        end of the content is no stop.
        """
        stop = self.stop
        has_it = stop is not None and text.endswith(stop, start, end) and not (content and content[1] == end)
        if stop and not has_it and text.startswith(stop, end):
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
            checked.append((start, end))
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
        mark = mark_content({"role": "assistant", "content": _PLACEHOLDER}, turn)
        stand_in = [*messages[:turn], mark, *messages[turn + 1 :]]
        try:
            other = parse_marks(self._template.render_raw(stand_in, tools, False))
        except TemplateError:
            other = None
        start = self._prompt_before(text, messages, turn, tools)
        if other is None or turn not in other.contents or start is None:
            raise TemplateError("the chat template's render does not show where an assistant turn's text lies")
        after = other.text[other.contents[turn][1] :]
        if not text.endswith(after) or len(text) - len(after) < start:
            raise TemplateError("the chat template's render does not show where an assistant turn's text ends")
        return start, len(text) - len(after)

    # -- plans ---------------------------------------------------------------------------------------------------

    def _proven(self, roles: Sequence[str], empty: Sequence[bool]) -> Plan | None:
        """The plan of a shape, with its places as real runs of the template show them; None when the two disagree.

        The runs are on texts of our own: what a row says must not decide how other rows of its shape are laid out.
        """
        trace = self._tracer.trace(roles, empty)
        plan = self._plan_from(trace, [i for i, role in enumerate(roles) if role == "assistant"]) if trace else None
        for proof in _PROOFS:
            contents = ["" if none else proof.format(i) for i, none in enumerate(empty)]
            if plan is None or not plan.fits(contents):
                return plan if proof != _PROOFS[0] else None
            try:
                real = self.lay_out([{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)])
            except TemplateError:
                return None
            plan = _with_leads(plan, real, contents) if proof == _PROOFS[0] else plan
            planned = plan.layout(contents)
            if (real.text, real.trained) != (planned.text, planned.trained):
                return None
        return plan

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
        answers = []
        for turn, (first, last) in zip(turns, spans, strict=True):
            before, after = pieces[last - 1], pieces[last] if last < len(pieces) else ""
            stop = self.stop or ""
            has_it = isinstance(before, str) and before.endswith(stop)
            tail = stop if not has_it and isinstance(after, str) and after.startswith(stop) else ""
            answers.append(PlannedAnswer(turn, first, last, 0, len(tail), len(tail.encode())))
        return Plan(tuple(pieces), tuple(answers), trace.absent)


def _start(text: str, header: int | None, start: int) -> int:
    """Where an answer starts: never inside its generation prompt, and with the white space that follows the prompt.

    Other text that the template writes between the prompt and the answer (an empty thought, say) is not the answer's.
    """
    if header is not None and (header > start or text[header:start].isspace()):
        return header
    return start


def _with_leads(plan: Plan, real: Layout, contents: Sequence[str]) -> Plan:
    """The plan with the white space before its answers that a real layout found to belong to them."""
    answers = []
    for answer, found, planned in zip(plan.answers, real.trained, plan.layout(contents).trained, strict=False):
        before = plan.pieces[answer.first - 1] if answer.first else ""
        lead = planned[1] - found[1]
        fixed = isinstance(before, str) and 0 < lead <= len(before) and before.isascii()
        answers.append(replace(answer, lead=lead) if fixed else answer)
    return replace(plan, answers=tuple(answers))
