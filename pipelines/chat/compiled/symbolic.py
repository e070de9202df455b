"""What a template does with the messages' text, found by running it once on stand-ins for that text.

A stand-in prints as marks that name its turn, and refuses every operation that could look at the text: comparing, taking
its length, slicing, splitting. When a template gets through a shape of conversation without being refused, its render
for that shape is fixed text with the turns' texts (as they are or trimmed) between, whatever these say. The few
questions that real templates ask, such as `'</think>' in content`, are answered "no" and kept as conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.sandbox
import jinja2.visitor
from jinja2 import nodes

from pipelines.chat.template import (
    CONTENT_CLOSE,
    CONTENT_OPEN,
    ROW_FAULTS,
    TURN_BASE,
    prepare_environment,
)

AS_IS, STRIP, LSTRIP, RSTRIP = "\ue000", "\ue001", "\ue002", "\ue003"
_ALLOWED_NODES = (
    "Add", "And", "Assign", "Break", "Call", "Compare", "Concat", "CondExpr", "Const", "Continue", "Dict", "For",
    "Getattr", "Getitem", "If", "Keyword", "List", "Mod", "NSRef", "Name", "Neg", "Not", "Operand", "Or", "Output",
    "Pair", "Scope", "Slice", "Sub", "TemplateData", "Template", "Test", "Tuple", "Filter",
)  # fmt: skip
_LIST_FILTERS = ("length", "count", "first", "last", "list", "selectattr", "rejectattr")
_KIND_TESTS = (
    "string", "defined", "undefined", "none", "mapping", "number", "boolean", "true", "false", "integer", "float",
)  # fmt: skip
_TEXT_FILTERS = ("trim", "string", "safe", "_compare", "_concat")


class ContentDependent(Exception):
    """The template looked at a text: its render cannot be foretold for this shape."""


@dataclass(frozen=True)
class ContentCondition:
    """What a turn's text must not have: `part` anywhere, or one of its characters first or last (`place`)."""

    turn: int
    part: str
    place: Literal["anywhere", "first", "last"] = "anywhere"

    def holds(self, content: str) -> bool:
        if self.place == "anywhere":
            return self.part not in content
        return (
            content[:1] not in self.part if self.place == "first" else content[-1:] not in self.part
        )


@dataclass(frozen=True)
class Trace:
    """`text` with marks for the turns' texts; it holds for contents that have none of `absent`."""

    text: str
    absent: tuple[ContentCondition, ...]


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise ContentDependent


class _Text(str):
    """Text that stands for, or holds, texts that are not known yet."""

    def __str__(self) -> str:
        return str.__str__(self)

    def __add__(self, other: str) -> _Text:
        return self if _plain(other) == "" else _Text(_plain(self) + _plain(other))

    def __radd__(self, other: str) -> _Text:
        return self if _plain(other) == "" else _Text(_plain(other) + _plain(self))

    def __bool__(self) -> bool:
        return True if _plain(self)[:1] not in ("", CONTENT_OPEN) else _refuse()

    def strip(self, chars: str | None = None) -> _Text:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> _Text:
        return self._cut(_plain(self).lstrip(chars), 0, CONTENT_OPEN)

    def rstrip(self, chars: str | None = None) -> _Text:
        return self._cut(_plain(self).rstrip(chars), -1, CONTENT_CLOSE)

    def _cut(self, rest: str, edge: int, mark: str) -> _Text:
        # A cut that ends at known text is the same for every conversation.
        return _Text(rest) if rest and rest[edge] != mark else _refuse()


class _Turn(_Text):
    """The text of one turn, never empty; `mode` tells how it was trimmed."""

    turn: int
    mode: str
    absent: list[ContentCondition]

    @staticmethod
    def make(turn: int, mode: str, absent: list[ContentCondition]) -> _Turn:
        text = _Turn(f"{CONTENT_OPEN}{chr(TURN_BASE + turn)}{mode}{CONTENT_CLOSE}")
        text.turn, text.mode, text.absent = turn, mode, absent
        return text

    def __bool__(self) -> bool:
        return True if self.mode == AS_IS else _refuse()

    def __contains__(self, part: object) -> bool:
        return self._without(part)

    def startswith(self, prefix: Any, *places: Any) -> bool:
        return _refuse() if places else self._without(prefix)

    def endswith(self, suffix: Any, *places: Any) -> bool:
        return _refuse() if places else self._without(suffix)

    def strip(self, chars: str | None = None) -> _Text:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> _Text:
        if chars is not None:
            return self._untrimmed(chars, "first")
        return _Turn.make(
            self.turn, {AS_IS: LSTRIP, RSTRIP: STRIP}.get(self.mode, self.mode), self.absent
        )

    def rstrip(self, chars: str | None = None) -> _Text:
        if chars is not None:
            return self._untrimmed(chars, "last")
        return _Turn.make(
            self.turn, {AS_IS: RSTRIP, LSTRIP: STRIP}.get(self.mode, self.mode), self.absent
        )

    def _untrimmed(self, chars: str, place: Literal["first", "last"]) -> _Turn:
        if self.mode != AS_IS or not isinstance(chars, str) or isinstance(chars, _Text):
            raise ContentDependent
        self.absent.append(ContentCondition(self.turn, chars, place))
        return self

    def _without(self, part: object) -> bool:
        if not isinstance(part, str) or isinstance(part, _Text) or not part:
            raise ContentDependent
        self.absent.append(ContentCondition(self.turn, part))
        return False


_KEPT = {
    *vars(_Text),
    "__new__",
    "__init__",
    "__class__",
    "__getattribute__",
    "__setattr__",
    "__doc__",
    "__slots__",
}
_KEPT |= {
    "__subclasshook__",
    "__init_subclass__",
    "__delattr__",
    "__reduce__",
    "__reduce_ex__",
    "__dir__",
    "__sizeof__",
}
for _name in set(dir(str)) - _KEPT:
    setattr(_Text, _name, _refuse)


def _plain(text: str) -> str:
    return str.__str__(text)


def _is_text(value: Any) -> bool:
    return isinstance(value, _Text)


class _TracingEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Compiles templates so that nothing can look at a stand-in unseen, or refuses them."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if any(type(node).__name__ not in _ALLOWED_NODES for node in tree.find_all(nodes.Node)):
            raise ContentDependent
        return _Rewriter().visit(tree)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(function, "__name__", "")
        if name == "strftime_now" or (
            name != "Namespace" and any(map(_is_text, [*args, *kwargs.values()]))
        ):
            raise ContentDependent
        return super().call(context, function, *args, **kwargs)


class _Rewriter(jinja2.visitor.NodeTransformer):
    """Turns comparisons, `~` and `%` into filters: operators on text cannot be guarded, filters can."""

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if len(node.ops) != 1:
            raise ContentDependent
        operand = node.ops[0]
        args = [nodes.Const(operand.op), operand.expr]
        return nodes.Filter(node.expr, "_compare", args, [], None, None).set_lineno(node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node.nodes[0], "_concat", node.nodes[1:], [], None, None).set_lineno(
            node.lineno
        )

    def visit_Mod(self, node: nodes.Mod) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node.left, "_modulo", [node.right], [], None, None).set_lineno(
            node.lineno
        )


def _modulo(left: Any, right: Any) -> Any:
    return left % right if isinstance(left, int) else _refuse()


def _compare(left: Any, op: str, right: Any) -> bool:
    if op in ("in", "notin"):
        if _is_text(left):
            raise ContentDependent
        return (left in right) == (op == "in")
    if _is_text(left) or _is_text(right):
        raise ContentDependent
    if op in ("eq", "ne"):
        return (left == right) == (op == "eq")
    return {"lt": left < right, "lteq": left <= right, "gt": left > right, "gteq": left >= right}[
        op
    ]


def _concat(*parts: Any) -> str:
    return _Text("".join(_plain(p) if isinstance(p, str) else str(p) for p in parts))


def _guarded(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    if name in _LIST_FILTERS or name in ("_compare", "_concat"):
        return filter

    def guarded(*args: Any, **kwargs: Any) -> Any:
        unknown = any(
            _is_text(a) or isinstance(a, list | tuple | Mapping) for a in [*args, *kwargs.values()]
        )
        if unknown and (name not in _TEXT_FILTERS or any(map(_is_text, args[1:]))):
            raise ContentDependent
        return filter(*args, **kwargs)

    return _refuse if hasattr(filter, "jinja_pass_arg") else guarded


def _guarded_test(name: str, test: Callable[..., bool]) -> Callable[..., bool]:
    def guarded(*args: Any) -> bool:
        if name not in _KIND_TESTS and any(map(_is_text, args)):
            raise ContentDependent
        return test(*args)

    # Tests that want the environment are about filter names and the like; templates do not put text to them.
    return _refuse if hasattr(test, "jinja_pass_arg") else guarded


@dataclass
class Tracer:
    """Traces one template; `trace` answers None where the template looks at the text."""

    source: str
    named_tokens: Mapping[str, str]
    _template: jinja2.Template | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        environment = _TracingEnvironment(trim_blocks=True, lstrip_blocks=True)
        prepare_environment(environment)
        environment.filters |= {"_compare": _compare, "_concat": _concat, "_modulo": _modulo}
        environment.tests = {n: _guarded_test(n, t) for n, t in environment.tests.items()}
        environment.filters = {n: _guarded(n, f) for n, f in environment.filters.items()}
        try:
            self._template = environment.from_string(self.source)
        except (ContentDependent, jinja2.TemplateError):
            self._template = None

    def trace(
        self, roles: Sequence[str], empty: Sequence[bool], prompt: bool = False
    ) -> Trace | None:
        """The render of a conversation of these roles, where `empty` tells which turns have no text."""
        if self._template is None:
            return None
        absent: list[ContentCondition] = []
        messages = [
            {"role": role, "content": "" if none else _Turn.make(i, AS_IS, absent)}
            for i, (role, none) in enumerate(zip(roles, empty, strict=True))
        ]
        try:
            text = self._template.render(
                messages=messages,
                tools=None,
                add_generation_prompt=prompt,
                **dict(self.named_tokens),
            )
        except (ContentDependent, jinja2.TemplateError, *ROW_FAULTS):
            return None
        return Trace(text, tuple(dict.fromkeys(absent)))
