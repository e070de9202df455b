"""A chat template that reports where it wrote the messages' text and the answers.

While the template runs, Unicode noncharacters mark two kinds of spans: what `{% generation %}`
blocks write, and text that comes from a message's `content`. The marks are cut out afterwards. A
marked render counts only when its text without marks equals the plain render, so marks can never
change the text that a model is trained on.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from pipelines.chat.probes import ANSWER, ASK
from pipelines.chat.spans import Span
from pipelines.chat.template_variables import strftime_now

GENERATION_OPEN, GENERATION_CLOSE, CONTENT_OPEN, CONTENT_CLOSE = (
    "\ufdd0",
    "\ufdd1",
    "\ufdd2",
    "\ufdd3",
)
MARKS = re.compile("[\ufdd0-\ufdd3]")
TURN_BASE = 0xE000  # the message index follows CONTENT_OPEN as one private-use character

# What a template's own code raises on messages that it was not written for. The cost is one row.
ROW_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
Messages = Sequence[Mapping[str, Any]]


class TemplateError(ValueError):
    """The template refuses a conversation, or its render does not show the assistant's text."""


@dataclass(frozen=True)
class MarkedText:
    """A render without its marks. Spans are character offsets.

    `generation_spans`: what generation blocks wrote. `content_spans`: contents by message index.
    """

    text: str
    generation_spans: tuple[Span, ...]
    content_spans: dict[int, Span]


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: writes its body between two marks."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opening, closing = (
            jinja2.nodes.Output([jinja2.nodes.TemplateData(mark)]).set_lineno(line)
            for mark in (GENERATION_OPEN, GENERATION_CLOSE)
        )
        # A scope of its own, as a call block has: variables set inside stay inside.
        return jinja2.nodes.Scope([opening, *body, closing]).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=32)  # one renderer asks for the same template several times
def parse_template(source: str) -> jinja2.Template:
    """Compile a template in the sandbox. Raises TemplateError on bad syntax."""
    try:
        return make_environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"the chat template is not valid Jinja, line {error.lineno}: {error.message}"
        ) from error


def variables_of(source: str) -> frozenset[str]:
    """The names of the variables that a template reads, `strftime_now` among them.

    Raises TemplateError on bad syntax.
    """
    parse_template(source)
    return frozenset(jinja2.meta.find_undeclared_variables(make_environment().parse(source)))


def make_environment() -> jinja2.Environment:
    """The sandbox in which chat templates are compiled and run."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    prepare_environment(environment)
    return environment


def prepare_environment(environment: jinja2.Environment) -> None:
    """Give an environment the tags, filters and functions that chat templates expect."""
    environment.add_extension(_Generation)
    environment.add_extension(jinja2.ext.loopcontrols)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception


class ChatTemplate:
    """A template and its variables: named special tokens (bos, eos and so on) and arguments.

    `takes_parts`: it reads contents as lists of parts only (SmolVLM's), so it gets them as these.
    `no_tools` is the variable `tools` of a conversation without tools.
    """

    def __init__(
        self, source: str, variables: Mapping[str, Any], no_tools: list[Any] | None = None
    ) -> None:
        self.source = source
        self._no_tools = no_tools
        self._template = parse_template(source)
        self._variables = {"strftime_now": strftime_now({}), **variables}
        self.takes_parts = False
        if as_texts := self._hidden_roles():
            self.takes_parts = True
            self.takes_parts = len(self._hidden_roles()) < len(as_texts)

    def with_variable(self, name: str, value: Any) -> ChatTemplate:
        """The template with another value of a variable."""
        return ChatTemplate(self.source, {**self._variables, name: value}, self._no_tools)

    def check_texts(self) -> None:
        """Raise TemplateError if the template refuses a question with an answer, or drops one."""
        self.render([ASK, ANSWER])
        hidden = self._hidden_roles()
        if hidden:
            raise TemplateError(f"it writes no text of {' and '.join(hidden)} messages")

    def _hidden_roles(self) -> list[str]:
        """The roles, of a question and an answer, whose text the template does not write."""
        try:
            text = self.render([ASK, ANSWER]).text
        except TemplateError:
            text = ""
        return [message["role"] for message in (ASK, ANSWER) if message["content"] not in text]

    def render(
        self, messages: Messages, tools: Sequence[Any] = (), prompt: bool = False
    ) -> MarkedText:
        """Render the messages as they are. `prompt` adds the generation prompt.

        Raises TemplateError when the template refuses them.
        """
        return parse_marks(self.render_raw(messages, tools, prompt))

    def find_content_spans(
        self, messages: Messages, tools: Sequence[Any], plain: str, prompt: bool = False
    ) -> dict[int, Span]:
        """Each message's content in the render `plain`, by renders with marked contents.

        For templates that trim, the trimmed text is marked. Messages without text are left out, and
        so are those whose text the template cuts or rebuilds.
        """
        roles = sorted({str(m["role"]) for m in messages})
        all_turns = range(len(messages))
        # Nearly every template trims all roles, none, or one of them: try these together first.
        for trimmed in (
            set(),
            set(roles),
            *({role} for role in roles),
            *(set(roles) - {role} for role in roles),
        ):
            marked = self._marked_render(messages, tools, prompt, all_turns, trimmed)
            if marked and marked.text == plain:
                return marked.content_spans
        spans: dict[int, Span] = {}
        for turn in all_turns:
            for trimmed in (set(), set(roles)):
                marked = self._marked_render(messages, tools, prompt, [turn], trimmed)
                if marked and marked.text == plain:
                    spans |= marked.content_spans
                    break
        return spans

    def _marked_render(
        self,
        messages: Messages,
        tools: Sequence[Any],
        prompt: bool,
        turns: Sequence[int],
        trimmed: set[str],
    ) -> MarkedText | None:
        marked = [
            mark_content(m, i, m["role"] in trimmed) if i in turns else m
            for i, m in enumerate(messages)
        ]
        try:
            return parse_marks(self.render_raw(marked, tools, prompt))
        except TemplateError:
            return None

    def render_raw(self, messages: Messages, tools: Sequence[Any], prompt: bool) -> str:
        """The render with its marks. Raises TemplateError when the messages are refused."""
        try:
            return self._template.render(
                messages=[with_parts(m) for m in messages] if self.takes_parts else messages,
                tools=list(tools) or self._no_tools,
                add_generation_prompt=prompt,
                **self._variables,
            )
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"the chat template refuses the conversation: {error.message}"
            ) from error
        except ROW_FAULTS as error:
            raise TemplateError(f"the chat template fails on the conversation: {error}") from error


def with_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its text as a list of one part."""
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def mark_content(message: Mapping[str, Any], turn: int, trimmed: bool = False) -> Mapping[str, Any]:
    """The message with marks around its text."""
    content = message.get("content")
    if not isinstance(content, str) or not content:
        return message
    content = content.strip() if trimmed else content
    return {**message, "content": f"{CONTENT_OPEN}{chr(TURN_BASE + turn)}{content}{CONTENT_CLOSE}"}


def parse_marks(marked: str) -> MarkedText:
    """Cut the marks out of a render and note their positions.

    Raises TemplateError when the marks do not pair up.
    """
    if not MARKS.search(marked):
        return MarkedText(marked, (), {})
    pieces, length = [], 0
    generations: list[Span] = []
    contents: dict[int, Span] = {}
    open_generation, open_content, turn, position = -1, -1, -1, 0
    for match in MARKS.finditer(marked):
        pieces.append(marked[position : match.start()])
        length += match.start() - position
        position = match.end()
        mark = match.group()
        if mark == GENERATION_OPEN and open_generation < 0:
            open_generation = length
        elif mark == GENERATION_CLOSE and open_generation >= 0:
            generations.append((open_generation, length))
            open_generation = -1
        elif mark == CONTENT_OPEN and open_content < 0:
            open_content, turn, position = length, ord(marked[position]) - TURN_BASE, position + 1
        elif mark == CONTENT_CLOSE and open_content >= 0 and turn not in contents:
            contents[turn] = (open_content, length)
            open_content = -1
        else:
            raise TemplateError(
                "the text contains a Unicode noncharacter of U+FDD0 to U+FDD3, or the template "
                "repeats a turn"
            )
    if open_generation >= 0 or open_content >= 0:
        raise TemplateError(
            "the text contains a Unicode noncharacter of U+FDD0 to U+FDD3, or the template "
            "cuts a turn"
        )
    pieces.append(marked[position:])
    return MarkedText("".join(pieces), tuple(generations), contents)


def spells_marks(value: Any) -> bool:
    """True if a text in a JSON-like value has a character that is used as a mark."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return not text.isascii() and MARKS.search(text) is not None


def replace_marks(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message, with U+FFFD for each character of its content that is used as a mark."""
    content = message.get("content")
    if isinstance(content, str) and MARKS.search(content):
        return {**message, "content": MARKS.sub("\ufffd", content)}
    return message
