"""From a conversation to its rendered text with the trained places in it, by the shortest way that is exact.

1. A plan: the template was traced for this shape of conversation (roles, which turns are empty), so the text is fixed
   pieces and the turns' texts joined, and every place follows from their lengths.
2. Otherwise the template runs on the conversation, and the answers lie where its `{% generation %}` blocks wrote or, if
   it has none or they do not hold the answers, where a marked second render shows the contents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pipelines.chat.compiled.segments import (
    CompiledTemplate,
    PlannedAnswer,
    PlannedPrompt,
    RenderedSpans,
)
from pipelines.chat.compiled.symbolic import Trace, Tracer
from pipelines.chat.template import (
    CONTENT_CLOSE,
    CONTENT_OPEN,
    GENERATION_CLOSE,
    GENERATION_OPEN,
    TURN_BASE,
    ChatTemplate,
    MarkedText,
    Messages,
    Span,
    TemplateError,
    mark_content,
    parse_marks,
)

_PLACEHOLDER = "the answer"
_PROOFS = (
    "text {} of a turn.",
    "\n text {} of a turn \t\n",
)  # white space shows what a template trims


class _Run(NamedTuple):
    """One run of the template: what it was given, and the text that it wrote."""

    messages: Messages
    tools: Sequence[Any]
    prompt: bool
    text: str


class AssistantSpanFinder:
    """Lays out messages with one template. `stop` is the control token's text that ends an assistant turn, if any."""

    def __init__(self, template: ChatTemplate, tracer: Tracer) -> None:
        self._template = template
        self._tracer = tracer
        self._plans: dict[tuple[Any, ...], CompiledTemplate | None] = {}
        self.stop: str | None = None

    def plan(self, roles: Sequence[str], contents: Sequence[str]) -> CompiledTemplate | None:
        """The plan for turns of plain text; None when the template must run on them. No tools, no tool calls."""
        shape = (*roles, *[not c for c in contents])
        if shape not in self._plans:
            self._plans[shape] = self._proven(roles, [not c for c in contents])
        plan = self._plans[shape]
        return plan if plan is not None and (not plan.absent or plan.fits(contents)) else None

    def lay_out(
        self, messages: Messages, tools: Sequence[Any] = (), prompt: bool = False
    ) -> RenderedSpans:
        """Run the template on the messages. Raises TemplateError when it refuses them or hides an answer."""
        found = self._template.render(messages, tools, prompt)
        inside = self._template.find_contents(messages, tools, found.text, prompt)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        run = _Run(messages, tools, prompt, found.text)
        spans = self._marked_answers(found.text, found.generations, messages, turns)
        if spans is None:
            spans = [self._unmarked_answer(run, i, inside.get(i)) for i in turns]
        trained = (
            ()
            if prompt
            else tuple(
                self._trained(run, i, s, inside.get(i)) for i, s in zip(turns, spans, strict=True)
            )
        )
        hidden = any(
            m["content"].strip() and i not in inside
            for i, m in enumerate(messages)
            if i not in turns
        )
        answers = [
            self._without_stop(found.text, a, b)
            for i, (a, b) in zip(turns, spans, strict=True)
            if i not in inside
        ]
        others = tuple(span for i, span in inside.items() if i not in turns)
        return RenderedSpans(
            found.text,
            trained,
            None if hidden else tuple(sorted([*inside.values(), *answers])),
            others,
        )

    def _trained(
        self, run: _Run, turn: int, span: Span, content: Span | None
    ) -> tuple[int, int, int]:
        header = self._prompt_before(run, turn)
        return turn, _start(run.text, header, span[0]), self._with_stop(run.text, *span, content)

    def _without_stop(self, text: str, start: int, end: int) -> Span:
        return start, end - len(self.stop) if self.stop and text.endswith(
            self.stop, start, end
        ) else end

    def _with_stop(self, text: str, start: int, end: int, content: Span | None) -> int:
        """The end of the answer, moved behind the stop text when this follows the answer. The same text typed at the
        end of the content is no stop.
        """
        stop = self.stop
        has_it = (
            stop is not None
            and text.endswith(stop, start, end)
            and not (content and content[1] == end)
        )
        if stop and not has_it and text.startswith(stop, end):
            return end + len(stop)
        return end

    def _marked_answers(
        self, text: str, spans: Sequence[Span], messages: Messages, turns: Sequence[int]
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

    def _prompt_before(self, run: _Run, turn: int) -> int | None:
        """Length of the generation prompt of a turn when the whole render begins with it."""
        prompt = self._rendered(
            run.messages[:turn], run.tools, True
        )  # many templates refuse to answer nothing
        return len(prompt) if prompt is not None and run.text.startswith(prompt) else None

    def _rendered(self, messages: Messages, tools: Sequence[Any], prompt: bool) -> str | None:
        try:
            return self._template.render(messages, tools, prompt).text
        except TemplateError:
            return None

    def _unmarked_answer(self, run: _Run, turn: int, content: Span | None) -> Span:
        """An answer's span without marks: its content or, where the template cut that or added calls, all from its
        generation prompt, or from behind a thought that the template inserts there, to the end of its turn.
        """
        if content is not None and not run.messages[turn].get("tool_calls"):
            return content
        start, end = self._start_of(run, turn, content), None
        if start is not None:
            end = self._end_of(run, turn, start)
        if start is None or end is None:
            raise TemplateError(
                "the chat template's render does not show where an assistant turn's text lies"
            )
        return start, end

    def _start_of(self, run: _Run, turn: int, content: Span | None) -> int | None:
        if content is not None:
            return content[0]
        other = self._with_placeholder(run, turn, {**run.messages[turn], "content": _PLACEHOLDER})
        before = other.text[: other.contents[turn][0]] if other else None
        # A thought that the turn itself has makes the two differ, so all behind the prompt is the answer's.
        return (
            len(before)
            if before and run.text.startswith(before)
            else self._prompt_before(run, turn)
        )

    def _end_of(self, run: _Run, turn: int, start: int) -> int | None:
        """By what follows a plain answer in the turn's place; where the template takes none, by what it writes up to it."""
        other = self._with_placeholder(run, turn, {"role": "assistant", "content": _PLACEHOLDER})
        after = other.text[other.contents[turn][1] :] if other else None
        if after is not None and run.text.endswith(after) and len(run.text) - len(after) >= start:
            return len(run.text) - len(after)
        upto = self._rendered(run.messages[: turn + 1], run.tools, False)
        if upto is None or not run.text.startswith(upto) or len(upto) < start:
            return None
        stop = upto.rfind(self.stop, start) if self.stop else -1
        return len(upto) if stop < 0 else stop

    def _with_placeholder(
        self, run: _Run, turn: int, message: Mapping[str, Any]
    ) -> MarkedText | None:
        messages = [*run.messages[:turn], mark_content(message, turn), *run.messages[turn + 1 :]]
        try:
            other = parse_marks(self._template.render_raw(messages, run.tools, run.prompt))
        except TemplateError:
            return None
        return other if turn in other.contents else None

    # -- plans ---------------------------------------------------------------------------------------------------

    def _proven(self, roles: Sequence[str], empty: Sequence[bool]) -> CompiledTemplate | None:
        """The plan of a shape, with its places as real runs of the template show them; None when the two disagree.

        The runs are on texts of our own: what a row says must not decide how other rows of its shape are laid out.
        """
        trace = self._tracer.trace(roles, empty)
        plan = (
            self._plan_from(trace, [i for i, role in enumerate(roles) if role == "assistant"])
            if trace
            else None
        )
        plan = self._with_prompt(plan, trace, roles, empty) if plan and trace else None
        for proof in _PROOFS:
            contents = ["" if none else proof.format(i) for i, none in enumerate(empty)]
            if plan is None or not plan.fits(contents):
                return plan if proof != _PROOFS[0] else None
            try:
                real = self.lay_out(
                    [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
                )
            except TemplateError:
                return None
            plan = _with_leads(plan, real, contents) if proof == _PROOFS[0] else plan
            planned = plan.layout(contents)
            if (real.text, real.trained) != (planned.text, planned.trained):
                return None
        return plan

    def _with_prompt(
        self, plan: CompiledTemplate, whole: Trace, roles: Sequence[str], empty: Sequence[bool]
    ) -> CompiledTemplate:
        """The plan with the place where the prompt of its last answer ends, by a trace of that prompt."""
        last = plan.answers[-1].turn if plan.answers else 0
        trace = self._tracer.trace(roles[:last], empty[:last], prompt=True)
        if (
            trace is None
            or not _fixed(whole).startswith(_fixed(trace))
            or not {*trace.absent} <= {*whole.absent}
        ):
            return plan
        before, _, text = _fixed(trace).rpartition(CONTENT_CLOSE)
        piece = 0
        if before:
            turn = ord(before[before.rindex(CONTENT_OPEN) + 1]) - TURN_BASE
            piece = next(
                i + 1 for i, p in enumerate(plan.pieces) if not isinstance(p, str) and p[0] == turn
            )
        return replace(plan, prompt=PlannedPrompt(piece, text, len(text.encode())))

    def _plan_from(self, trace: Trace, turns: Sequence[int]) -> CompiledTemplate | None:
        """Cut a traced text at its marks; None when an answer cannot be placed in it."""
        pieces: list[str | tuple[int, str]] = []
        generations: list[list[int]] = []
        slots: dict[int, int] = {}
        for match in re.finditer(
            "\ufdd0|\ufdd1|\ufdd2(.)(.)\ufdd3|[^\ufdd0-\ufdd3]+", trace.text, re.DOTALL
        ):
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
        spans = (
            generations
            if len(generations) == len(turns)
            else [[slots[i], slots[i] + 1] for i in turns]
        )
        if any(not a <= slots[i] < b for i, (a, b) in zip(turns, spans, strict=True)):
            return None
        answers = []
        for turn, (first, last) in zip(turns, spans, strict=True):
            before, after = pieces[last - 1], pieces[last] if last < len(pieces) else ""
            stop = self.stop or ""
            has_it = isinstance(before, str) and before.endswith(stop)
            tail = stop if not has_it and isinstance(after, str) and after.startswith(stop) else ""
            answers.append(PlannedAnswer(turn, first, last, 0, len(tail), len(tail.encode())))
        return CompiledTemplate(tuple(pieces), tuple(answers), trace.absent)


def _fixed(trace: Trace) -> str:
    return trace.text.replace(GENERATION_OPEN, "").replace(GENERATION_CLOSE, "")


def _start(text: str, header: int | None, start: int) -> int:
    """Where an answer starts: never inside its generation prompt, and with the white space that follows the prompt.

    Other text that the template writes between the prompt and the answer (an empty thought, say) is not the answer's.
    """
    if header is not None and (header > start or text[header:start].isspace()):
        return header
    return start


def _with_leads(
    plan: CompiledTemplate, real: RenderedSpans, contents: Sequence[str]
) -> CompiledTemplate:
    """The plan with the white space before its answers that a real layout found to belong to them."""
    answers = []
    for answer, found, planned in zip(
        plan.answers, real.trained, plan.layout(contents).trained, strict=False
    ):
        before = plan.pieces[answer.first - 1] if answer.first else ""
        lead = planned[1] - found[1]
        fixed = isinstance(before, str) and 0 < lead <= len(before) and before.isascii()
        answers.append(replace(answer, lead=lead) if fixed else answer)
    return replace(plan, answers=tuple(answers))
