"""Symbolic text: strings that stand for message contents while a template is traced.

A symbolic text prints as marks that name its message. Every operation that could read the content
(comparison, length, slicing, splitting) raises ContentDependent. If a render raises none, it
consists of fixed text and the contents, as given or trimmed, and this holds for all contents. A few
tests that published templates make, such as `'</think>' in content`, are answered with "no", and
the answer is recorded as a condition on the content: the trace is valid only where it is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from pipelines.chat.template import CONTENT_CLOSE, CONTENT_OPEN, TURN_BASE

# The trim that a template applies to a content. Each is one private-use character in the mark.
AS_IS, STRIP, LSTRIP, RSTRIP = "\ue000", "\ue001", "\ue002", "\ue003"


class ContentDependent(Exception):
    """The template reads a content, so its render is not the same for every content."""


@dataclass(frozen=True)
class ContentCondition:
    """A condition on the content of message `turn`, under which a trace is valid.

    With position "anywhere", `part` does not occur in the content. With "first" or "last", the
    content's first or last character is not one of the characters of `part`.
    """

    turn: int
    part: str
    position: Literal["anywhere", "first", "last"] = "anywhere"

    def holds(self, content: str) -> bool:
        if self.position == "anywhere":
            return self.part not in content
        edge = content[:1] if self.position == "first" else content[-1:]
        return edge not in self.part


def refuse(*_: Any, **__: Any) -> NoReturn:
    """Takes the place of an operation that would read a content. Raises ContentDependent."""
    raise ContentDependent


class SymbolicText(str):
    """Text that is, or contains, unknown contents.

    Warning: this is a str, so that Jinja takes it for one, and every method that str has and this
    class does not define is replaced by `refuse` below. C code that reads a str's buffer directly
    (`str.join`, `%`, `in` on a plain str) never calls these methods: the tracing environment
    rewrites such operations, see `tracer`.
    """

    def __str__(self) -> str:
        return str.__str__(self)

    def __add__(self, other: str) -> SymbolicText:
        return self if marked(other) == "" else SymbolicText(marked(self) + marked(other))

    def __radd__(self, other: str) -> SymbolicText:
        return self if marked(other) == "" else SymbolicText(marked(other) + marked(self))

    def __bool__(self) -> bool:
        # Only fixed text proves that the text is not empty: a trimmed content may be.
        return True if marked(self)[:1] not in ("", CONTENT_OPEN) else refuse()

    def strip(self, chars: str | None = None) -> SymbolicText:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> SymbolicText:
        return self._trimmed(marked(self).lstrip(chars), 0, CONTENT_OPEN)

    def rstrip(self, chars: str | None = None) -> SymbolicText:
        return self._trimmed(marked(self).rstrip(chars), -1, CONTENT_CLOSE)

    def _trimmed(self, rest: str, edge: int, mark: str) -> SymbolicText:
        # If the trim stops at fixed text, it is the same for every content. If it reaches a mark,
        # it would go on into the content.
        return SymbolicText(rest) if rest and rest[edge] != mark else refuse()


class SymbolicContent(SymbolicText):
    """The content of one message, never empty. `mode` is how the template has trimmed it."""

    turn: int
    mode: str
    conditions: list[ContentCondition]

    @staticmethod
    def make(turn: int, mode: str, conditions: list[ContentCondition]) -> SymbolicContent:
        """The content of message `turn`. Its answers append their conditions to `conditions`."""
        text = SymbolicContent(f"{CONTENT_OPEN}{chr(TURN_BASE + turn)}{mode}{CONTENT_CLOSE}")
        text.turn, text.mode, text.conditions = turn, mode, conditions
        return text

    def __bool__(self) -> bool:
        return True if self.mode == AS_IS else refuse()  # a trimmed content may be empty

    def __contains__(self, part: object) -> bool:
        return self._assume_absent(part)

    def startswith(self, prefix: Any, *bounds: Any) -> bool:
        return refuse() if bounds else self._assume_absent(prefix)

    def endswith(self, suffix: Any, *bounds: Any) -> bool:
        return refuse() if bounds else self._assume_absent(suffix)

    def strip(self, chars: str | None = None) -> SymbolicText:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> SymbolicText:
        if chars is not None:
            return self._assume_untrimmed(chars, "first")
        mode = {AS_IS: LSTRIP, RSTRIP: STRIP}.get(self.mode, self.mode)
        return SymbolicContent.make(self.turn, mode, self.conditions)

    def rstrip(self, chars: str | None = None) -> SymbolicText:
        if chars is not None:
            return self._assume_untrimmed(chars, "last")
        mode = {AS_IS: RSTRIP, LSTRIP: STRIP}.get(self.mode, self.mode)
        return SymbolicContent.make(self.turn, mode, self.conditions)

    def _assume_untrimmed(self, chars: str, position: Literal["first", "last"]) -> SymbolicContent:
        if self.mode != AS_IS or not isinstance(chars, str) or is_symbolic(chars):
            raise ContentDependent
        self.conditions.append(ContentCondition(self.turn, chars, position))
        return self

    def _assume_absent(self, part: object) -> bool:
        # A content without the part has it neither at its start nor at its end, trimmed or not.
        if not isinstance(part, str) or is_symbolic(part) or not part:
            raise ContentDependent
        self.conditions.append(ContentCondition(self.turn, part))
        return False


# Python itself needs these to make and hold an object; none of them reads the text.
_OBJECT_METHODS = {
    "__new__", "__init__", "__class__", "__getattribute__", "__setattr__", "__delattr__", "__dir__",
    "__doc__", "__slots__", "__subclasshook__", "__init_subclass__", "__reduce__", "__reduce_ex__",
    "__sizeof__",
}  # fmt: skip
for _name in set(dir(str)) - vars(SymbolicText).keys() - _OBJECT_METHODS:
    setattr(SymbolicText, _name, refuse)


def marked(text: str) -> str:
    """A text's own characters, marks in place of unknown contents, as a plain str."""
    return str.__str__(text)


def is_symbolic(value: Any) -> bool:
    """True if a value is, or contains, an unknown content."""
    return isinstance(value, SymbolicText)
