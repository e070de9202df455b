"""A window over a JSON text that is too long for memory: values are taken from it one by one.

A text that does not parse is refused: behind a syntax error nothing shows where the next value
begins. Files of lines (JSONL, CSV) lose one row instead.
"""

from __future__ import annotations

import io
import json
import re
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

_SPACE = re.compile("[ \\t\\r\\n\ufeff]*")  # the last: files that were put together
_CHARS_BEFORE, _CHARS_AFTER = 30, 30  # of the text that an error message shows


class JsonWindow:
    """A part of a text in UTF-8: `text` from `at` on has at least MAX_ROW_BYTES characters, or all
    the rest.

    `line` is the line of `at`, from 0. `element` counts the elements that begin at or before `at`;
    the last of them begins in `_element_line`. `noun` says of what they are elements.
    """

    def __init__(self, stream: IO[bytes], path: str, noun: str) -> None:
        self._stream = io.TextIOWrapper(
            stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        self._path, self._noun, self._ended = path, noun, False
        self.text, self.at, self.line = "", 0, 0
        self.element = self._element_line = 0
        self._faults: list[str] = []  # of the present element
        self._decode = json.JSONDecoder(object_pairs_hook=self._object).raw_decode
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
                noun = "object" if char in "}:" else "array"
                self.refuse(f"the {noun} has no end: the file is cut off here", self.at)
            expected = f"',' or {char!r}" if char in "]}" else repr(char)
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
        except (ValueError, RecursionError) as error:
            self._refuse_value(error)
        if end - self.at > MAX_ROW_BYTES:
            self._refuse_length()
        shown = self.text[self.at : end] if self._faults else ""
        self._move(end)
        if self._faults:
            return broken(self._element_line, f"not JSON: {self._faults[0]}", shown)
        return RawRow(self._element_line, value)

    def take_key(self) -> str:
        """Move past the next key of an object and its colon."""
        self.skip_space()
        try:
            key, end = self._decode(self.text, self.at)
        except (ValueError, RecursionError) as error:
            self._refuse_value(error)
        if not isinstance(key, str):
            self.refuse("expected a key in quotes", self.at)
        self._move(end)
        self.expect(":")
        return key

    def skip_value(self, depth: int = 3) -> None:
        """Move past a value that is no element; one of any length down to some depth."""
        char = self.next_char()
        if depth and char in ("[", "{"):
            end = {"[": "]", "{": "}"}[char]
            self.expect(char)
            while self.next_char() != end:
                if char == "{":
                    self.take_key()
                self.skip_value(depth - 1)
                if self.next_char() != ",":
                    break
                self.expect(",")
            self.expect(end)
            return
        try:
            self._move(self._decode(self.text, self.at)[1])
        except (ValueError, RecursionError) as error:
            self._refuse_value(error)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            self._faults.append(repeated_key(pairs))
        return value

    def _refuse_length(self) -> NoReturn:
        self.refuse(f"no end within the limit of {MAX_ROW_BYTES} characters", self.at)

    def _refuse_value(self, error: Exception) -> NoReturn:
        """Raise the UserError about the next value, which `error` says is not JSON."""
        place, reason = getattr(error, "pos", self.at), reason_of(error).removesuffix(" at")
        is_cut = reason.startswith("Unterminated")
        if not self._ended and (is_cut or place - self.at > MAX_ROW_BYTES):
            self._refuse_length()  # a value longer than the window looks as if the text ended in it
        if self.text[self.at : self.at + 1] in ("]", "}"):
            reason = f"{reason}: delete the comma before the end"
        elif is_cut or place >= len(self.text.rstrip()):
            reason = f"{reason}: the file is cut off here"
        self.refuse(reason, place)

    def refuse(self, reason: str, place: int) -> NoReturn:
        """Raise the UserError about the text at `place` in the window."""
        line = self.line + self.text.count("\n", self.at, place) + 1
        near = self.text[max(0, place - _CHARS_BEFORE) : place + _CHARS_AFTER]
        where = f"near {printable(near)!r}" if near else "at the end of the file"
        raise UserError(
            f"{self._path}:{line}: element {max(1, self.element)} of {self._noun}, which begins in "
            f"line {self._element_line + 1}: {reason}, {where}; fix the file, or write one row a "
            "line as .jsonl, where a broken row costs only itself"
        )
