"""Traces a template: runs it once on symbolic contents, for one shape of conversation.

A subclass of str cannot intercept every operator on text (`==`, `in`, `~`, `%`), because Python and
Jinja run some of them in C. So the tracing environment rewrites these operators as filters when it
parses a template, refuses syntax outside `_ALLOWED_NODES`, and wraps filters, tests and calls so
that they raise ContentDependent instead of reading a content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import jinja2.sandbox
import jinja2.visitor
from jinja2 import nodes

from pipelines.chat.compiled.symbolic_text import (
    AS_IS,
    ContentCondition,
    ContentDependent,
    SymbolicContent,
    SymbolicText,
    is_symbolic,
    marked,
    refuse,
)
from pipelines.chat.template import ROW_FAULTS, prepare_environment, with_parts

# Only syntax that is known to read no content unnoticed. Macros, blocks and includes were not
# checked, so a template that uses them is not traced.
_ALLOWED_NODES = (
    "Add", "And", "Assign", "Break", "Call", "Compare", "Concat", "CondExpr", "Const", "Continue",
    "Dict", "For", "Getattr", "Getitem", "If", "Keyword", "List", "Mod", "NSRef", "Name", "Neg",
    "Not", "Operand", "Or", "Output", "Pair", "Scope", "Slice", "Sub", "TemplateData", "Template",
    "Test", "Tuple", "Filter",
)  # fmt: skip
_LIST_FILTERS = ("length", "count", "first", "last", "list", "selectattr", "rejectattr")
_KIND_TESTS = (
    "string", "defined", "undefined", "none", "mapping", "number", "boolean", "true", "false",
    "integer", "float",
)  # fmt: skip
_TEXT_FILTERS = ("trim", "string", "safe")


@dataclass(frozen=True)
class Trace:
    """`text` is a render with marks in place of the contents, valid for all contents for which the
    conditions hold.
    """

    text: str
    conditions: tuple[ContentCondition, ...]


@dataclass
class Tracer:
    """Traces one template.

    `trace` returns None if the template cannot be traced: it reads a content, uses unsupported
    syntax, or fails.
    """

    source: str
    variables: Mapping[str, Any]
    takes_parts: bool = False
    _template: jinja2.Template | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        environment = _TracingEnvironment(trim_blocks=True, lstrip_blocks=True)
        prepare_environment(environment)
        environment.filters |= {"_compare": _compare, "_concat": _concat, "_modulo": _modulo}
        environment.tests = {n: _guarded_test(n, t) for n, t in environment.tests.items()}
        environment.filters = {n: _guarded_filter(n, f) for n, f in environment.filters.items()}
        try:
            self._template = environment.from_string(self.source)
        except (ContentDependent, jinja2.TemplateError):
            self._template = None

    def trace(
        self, roles: Sequence[str], empty: Sequence[bool], prompt: bool = False
    ) -> Trace | None:
        """The render of a conversation of these roles; `empty` says which contents are empty."""
        if self._template is None:
            return None
        conditions: list[ContentCondition] = []
        messages: list[Mapping[str, Any]] = [
            {"role": role, "content": "" if no_text else SymbolicContent.make(i, AS_IS, conditions)}
            for i, (role, no_text) in enumerate(zip(roles, empty, strict=True))
        ]
        if self.takes_parts:
            messages = [with_parts(message) for message in messages]
        try:
            text = self._template.render(
                messages=messages,
                tools=None,
                add_generation_prompt=prompt,
                **self.variables,
            )
        except (ContentDependent, jinja2.TemplateError, *ROW_FAULTS):
            return None
        return Trace(text, tuple(dict.fromkeys(conditions)))


class _TracingEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Compiles templates such that no operation reads a symbolic text unnoticed."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if any(type(node).__name__ not in _ALLOWED_NODES for node in tree.find_all(nodes.Node)):
            raise ContentDependent
        return _OperatorsToFilters().visit(tree)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(function, "__name__", "")
        takes_text = any(map(is_symbolic, [*args, *kwargs.values()]))
        # `namespace(...)` only stores its arguments.
        if name != "Namespace" and takes_text:
            raise ContentDependent
        return super().call(context, function, *args, **kwargs)


class _OperatorsToFilters(jinja2.visitor.NodeTransformer):
    """Turns comparisons, `~` and `%` into filters: filters can be guarded, operators cannot."""

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if len(node.ops) != 1:  # a chain such as a < b < c
            raise ContentDependent
        operand = node.ops[0]
        args: list[nodes.Expr] = [nodes.Const(operand.op), operand.expr]
        return _filter(node, node.expr, "_compare", args)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, node.nodes[0], "_concat", node.nodes[1:])

    def visit_Mod(self, node: nodes.Mod) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, node.left, "_modulo", [node.right])


def _filter(node: nodes.Node, value: nodes.Expr, name: str, args: list[nodes.Expr]) -> nodes.Node:
    return nodes.Filter(value, name, args, [], None, None).set_lineno(node.lineno)


def _modulo(left: Any, right: Any) -> Any:
    return left % right if isinstance(left, int) else refuse()  # `%` also formats strings


def _compare(left: Any, op: str, right: Any) -> bool:
    if op in ("in", "notin"):
        if is_symbolic(left):
            raise ContentDependent
        return (left in right) == (op == "in")
    if is_symbolic(left) or is_symbolic(right):
        raise ContentDependent
    if op in ("eq", "ne"):
        return (left == right) == (op == "eq")
    orders = {
        "lt": left < right, "lteq": left <= right, "gt": left > right, "gteq": left >= right,
    }  # fmt: skip
    return orders[op]


def _concat(*parts: Any) -> str:
    return SymbolicText("".join(marked(p) if isinstance(p, str) else str(p) for p in parts))


def _guarded_filter(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, wrapped to raise ContentDependent for arguments that are or may contain contents.

    Lists and mappings may contain some. `_TEXT_FILTERS` accept any first argument. `_compare` and
    `_concat` check their own arguments, and `_LIST_FILTERS` call methods that a symbolic text
    refuses, so these are not wrapped.
    """
    if name in _LIST_FILTERS or name in ("_compare", "_concat"):
        return filter

    def guarded(*args: Any, **kwargs: Any) -> Any:
        unknown = any(
            is_symbolic(a) or isinstance(a, list | tuple | Mapping)
            for a in [*args, *kwargs.values()]
        )
        if unknown and (name not in _TEXT_FILTERS or any(map(is_symbolic, args[1:]))):
            raise ContentDependent
        return filter(*args, **kwargs)

    return refuse if hasattr(filter, "jinja_pass_arg") else guarded


def _guarded_test(name: str, test: Callable[..., bool]) -> Callable[..., bool]:
    """The test, wrapped to raise ContentDependent for symbolic text unless it asks for a type."""

    def guarded(*args: Any) -> bool:
        if name not in _KIND_TESTS and any(map(is_symbolic, args)):
            raise ContentDependent
        return test(*args)

    # Jinja passes its environment to `is filter` and `is test`. Chat templates do not use them, so
    # they are refused and the wrapper need not pass it on.
    return refuse if hasattr(test, "jinja_pass_arg") else guarded
