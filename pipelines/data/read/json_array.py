"""The elements of a JSON array, streamed through a window of bounded size.

An array that does not parse is refused: behind a syntax error nothing shows where the next element
begins. Files of lines (JSONL, CSV) lose one row instead.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from pipelines.core.errors import UserError
from pipelines.data.read.raw_row import (
    MAX_ROW_BYTES,
    RawRow,
    broken,
    printable,
    reason_of,
    repeated_key,
)

_SPACE = re.compile(r"[ \t\r\n]*")
_CHARS_BEFORE, _CHARS_AFTER = 30, 30  # of the text that an error message shows


def read_array(stream: IO[bytes], path: str) -> Iterator[RawRow]:
    """The elements of one JSON array, each numbered by its line.

    An element that parses but breaks a rule of rows (a key that occurs twice, NaN) is a broken row.
    Raises UserError, naming element and line, for text that is no JSON array and for an element of
    more than MAX_ROW_BYTES characters.
    """
    window = _Window(
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=""), path
    )
    window.skip_space()
    window.expect("[")
    if window.next_char() != "]":
        yield window.take_element()
        while window.next_char() == ",":
            window.expect(",")
            yield window.take_element()
    window.expect("]")
    if window.next_char():
        window.refuse("text follows the end of the array", window.at)


class _Window:
    """A part of a text: `text` from `at` on has at least MAX_ROW_BYTES characters, or all the rest.

    `line` is the line of `at`, from 0. `element` counts the elements that begin at or before `at`;
    the last of them begins in `_element_line`.
    """

    def __init__(self, stream: io.TextIOWrapper, path: str) -> None:
        self._stream, self._path, self._ended = stream, path, False
        self.text, self.at, self.line = "", 0, 0
        self.element = self._element_line = 0
        self._faults: list[str] = []  # of the present element
        self._decode = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant
        ).raw_decode
        self._move(0)

    def _move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to
        if len(self.text) - to <= MAX_ROW_BYTES and not self._ended:
            more = self._stream.read(2 * MAX_ROW_BYTES)
            self._ended = not more
            self.text, self.at = self.text[to:] + more, 0

    def skip_space(self) -> None:
        """Move to the next character that is no white space, or to the end of the text."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self._move(match.end())
            if self.at < len(self.text) or self._ended:
                return

    def next_char(self) -> str:
        """The next character that is no white space; "" at the end of the text."""
        self.skip_space()
        return self.text[self.at : self.at + 1]

    def expect(self, char: str) -> None:
        """Move past a bracket or comma. Raises UserError when there is another character."""
        if self.next_char() != char:
            if self.at == len(self.text):
                self.refuse("the array has no end: the file is cut off here", self.at)
            expected = "',' or ']'" if char == "]" else repr(char)
            self.refuse(f"expected {expected}", self.at)
        self._move(self.at + 1)

    def take_element(self) -> RawRow:
        """Parse the next element and move behind it."""
        self.skip_space()
        self.element += 1
        self._element_line = self.line
        self._faults.clear()
        try:
            value, end = self._decode(self.text, self.at)
        except json.JSONDecodeError as error:
            # An element that is longer than the window looks as if the text ended inside it.
            cut = error.msg.startswith("Unterminated") or error.pos - self.at > MAX_ROW_BYTES
            if cut and not self._ended:
                self._refuse_length()
            self.refuse(error.msg.removesuffix(" at"), error.pos)
        except (ValueError, RecursionError) as error:
            self.refuse(reason_of(error), self.at)
        if end - self.at > MAX_ROW_BYTES:
            self._refuse_length()
        shown = self.text[self.at : end] if self._faults else ""
        self._move(end)
        if self._faults:
            return broken(self._element_line, f"not JSON: {self._faults[0]}", shown)
        return RawRow(self._element_line, value)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            self._faults.append(repeated_key(pairs))
        return value

    def _constant(self, name: str) -> None:
        self._faults.append(f"{name} is not JSON")

    def _refuse_length(self) -> NoReturn:
        self.refuse(f"no end within the limit of {MAX_ROW_BYTES} characters", self.at)

    def refuse(self, reason: str, place: int) -> NoReturn:
        """Raise the UserError about the text at `place` in the window."""
        line = self.line + self.text.count("\n", self.at, place) + 1
        near = self.text[max(0, place - _CHARS_BEFORE) : place + _CHARS_AFTER]
        where = f"near {printable(near)!r}" if near else "at the end of the file"
        raise UserError(
            f"{self._path}:{line}: element {max(1, self.element)} of the JSON array, which begins "
            f"in line {self._element_line + 1}: {reason}, {where}; fix the file, or write one row "
            "a line as .jsonl, where a broken row costs only itself"
        )
