"""The elements of a JSON array, read through a window: a broken one costs itself, and no file is ever in memory whole."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import IO, Any

from pipelines.data.read.raw_row import (
    MAX_ROW_BYTES,
    MAX_SHOWN_CHARS,
    RawRow,
    broken,
    strict_decoder,
    why,
)

_BETWEEN = re.compile(r"[\s,]*")
_BRACE = re.compile(
    r"(?:[,}]\s*|\]\s*\[\s*|^[ \t]*)(\{)", re.MULTILINE
)  # where an element may open; the brace is group 1
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:')
_ENDS_VALUE = re.compile(r"\s*[,\]]|\s*\Z")
_NEXT = re.compile(r"\s*,\s*(?=\{)")
_CLOSED, _CLOSED_INSIDE, _CLOSED_BEFORE_ANOTHER = (
    re.compile(r"\s*\]" + then) for then in ("", r"\s*[,}]", r"\s*\[")
)
_LOOK_AHEAD, _MAX_KEYS, _USUAL_CHARS = 32, 1000, 1 << 14
_LENIENT = json.JSONDecoder(strict=False)


def read_array(stream: IO[bytes]) -> Iterator[RawRow]:
    """The elements, readable or not, each with its line. Behind a broken one, reading goes on where the next opens."""
    decode = strict_decoder().raw_decode
    window = _Window(
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    )
    window.move(window.text.index("[") + 1)
    elements = _Elements()
    while window.skip_between():
        elements.begin(window)
        line = window.line
        if window.text[window.at] == "]":
            if window.ends_behind(window.at + 1):
                return
            yield broken(
                line,
                "the array ends here, and text follows",
                window.pass_over(elements.opening_behind(-1)),
            )
            continue
        try:
            value, end = decode(window.text, window.at)
            if not isinstance(value, dict) and not _ENDS_VALUE.match(window.text, end):
                raise ValueError("Extra data")
        except (ValueError, RecursionError) as error:
            yield broken(line, f"not JSON: {why(error)}", _pass_over(window, elements, error))
            if window.at == len(window.text):
                return
            continue
        elements.learn(value)
        size = end - window.at
        if size > MAX_ROW_BYTES:
            reason = f"an element of {size} characters, the limit is {MAX_ROW_BYTES}"
            yield broken(line, reason, window.text[window.at : window.at + MAX_SHOWN_CHARS])
        else:
            yield RawRow(line, value)
        window.move(end)
    yield broken(window.line, "the array has no end: the file is cut off here", "(end of file)")


def _pass_over(window: _Window, elements: _Elements, error: Exception) -> str:
    """Move behind the broken element; how the text between begins."""
    if isinstance(error, json.JSONDecodeError) and not error.msg.startswith("Invalid control"):
        return window.pass_over(elements.opening_behind(window.dropped + error.pos))
    value, end = _lenient(window.text, window.at)
    # One that is whole and only breaks a rule (a key that is there twice, NaN) ends where it ends.
    if isinstance(value, dict) and (_NEXT.match(window.text, end) or window.array_ends(end)):
        shown = window.text[window.at : min(end, window.at + MAX_SHOWN_CHARS)]
        window.move(end)
        return shown
    return window.pass_over(elements.opening_behind(window.dropped + end))


def _lenient(text: str, place: int) -> tuple[Any, int]:
    """The value there and its end; None and the place of the damage if it is broken."""
    # A JSONDecodeError counts the lines before it, in a whole window for milliseconds: a part of it is tried first.
    part = text[place : place + _USUAL_CHARS]
    for within, start in ((part, 0), (text, place)):
        try:
            value, end = _LENIENT.raw_decode(within, start)
            return value, place + end - start
        except json.JSONDecodeError as error:
            cut = error.pos > len(part) - 16 or error.msg.startswith("Unterminated")
            if not cut or within is text or len(part) < _USUAL_CHARS:
                return None, place + error.pos - start
        except (ValueError, RecursionError):
            break
    return None, place


def _first_key(window: _Window) -> str | None:
    key = _FIRST_KEY.match(window.text, window.at)
    return key and key[1]


class _Elements:
    """What the elements so far are like, by which the next is told from the objects inside a broken one: the keys that
    all of them have, that some have, and that some begin with; and the indentation of the first.
    """

    def __init__(self) -> None:
        self._common: set[str] | None = None
        self._known: set[str] = set()
        self._openings: set[str] = set()
        self._lead: str | None = None
        self._damage = -1  # where the element that is passed over is broken
        self._seen: dict[int, tuple[bool | None, int]] = {}  # what was found behind it

    def begin(self, window: _Window) -> None:
        """An element, whole or broken, is here; of the first its looks are kept."""
        if self._lead is None:
            self._lead = window.lead()
            self._openings = {_first_key(window) or ""}

    def learn(self, value: Any) -> None:
        if not isinstance(value, dict) or not value:
            return
        self._common = set(value) if self._common is None else self._common & value.keys()
        if len(self._known) < _MAX_KEYS:
            self._known |= value.keys()
            self._openings.add(json.dumps(next(iter(value))))

    def opening_behind(self, damage: int) -> Callable[[_Window], bool]:
        """Whether a brace opens an element of the array and no object inside the one that is broken at `damage`."""
        self._damage, self._seen = damage, {}
        return self._opens

    def _opens(self, window: _Window) -> bool:
        if self._lead and window.text.endswith(f"\n{self._lead}", 0, window.at):
            return True
        alike, end = self._looked_at(window, window.at)
        if alike is None:
            # A part of what is passed over is broken where that is.
            return window.dropped + end != self._damage and _first_key(window) in self._openings
        for _ in range(_LOOK_AHEAD):
            if _CLOSED_INSIDE.match(window.text, end):
                return False  # a list inside an element
            if window.array_ends(end):
                return True
            behind = _NEXT.match(window.text, end)
            other, end = self._looked_at(window, behind.end()) if behind else (None, end)
            if other is None:
                break
            if other and not alike:
                return False
        return alike

    def _looked_at(self, window: _Window, place: int) -> tuple[bool | None, int]:
        """Whether the object there is like the elements, and its end; None if it is broken or none."""
        key = window.dropped + place
        if key not in self._seen:
            value, end = _lenient(window.text, place)
            self._seen[key] = (
                self._alike(value) if isinstance(value, dict) else None,
                window.dropped + end,
            )
        alike, end = self._seen[key]
        return alike, end - window.dropped

    def _alike(self, value: dict[str, Any]) -> bool:
        keys = value.keys()
        if self._common is None:  # none was whole so far
            return self._openings == {""} or any(json.dumps(key) in self._openings for key in keys)
        return (
            bool(self._common) and self._common <= keys or 2 * len(keys & self._known) > len(keys)
        )


class _Window:
    """The next MAX_ROW_BYTES characters of a text or more (`text` from `at` on), how many are `dropped` before `text`, and
    the line that `at` is in, from 0.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream, self.text, self._ended = stream, "", False
        self.at = self.line = self.dropped = 0
        self.move(0)

    def move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to
        if len(self.text) - to < MAX_ROW_BYTES and not self._ended:
            more = self._stream.read(2 * MAX_ROW_BYTES)
            self._ended = not more
            self.text, self.at = self.text[to:] + more, 0
            self.dropped += to

    def skip_between(self) -> bool:
        """Move to the next element or bracket; False at the end of the text."""
        while True:
            match = _BETWEEN.match(self.text, self.at)
            assert match is not None
            self.move(match.end())
            if self.at < len(self.text) or self._ended:
                return self.at < len(self.text)

    def lead(self) -> str:
        """The white space before `at` if that is all its line begins with, else nothing."""
        start = self.text.rfind("\n", 0, self.at) + 1
        lead = self.text[start : self.at] if start else ""
        return "" if lead.strip() else lead

    def array_ends(self, place: int) -> bool:
        """Whether the array is closed there, and nothing or another array follows."""
        closed = _CLOSED.match(self.text, place)
        return closed is not None and (
            self.ends_behind(closed.end())
            or _CLOSED_BEFORE_ANOTHER.match(self.text, place) is not None
        )

    def ends_behind(self, place: int) -> bool:
        match = _BETWEEN.match(self.text, place)
        return match is not None and match.end() == len(self.text) and self._ended

    def pass_over(self, opens: Callable[[_Window], bool]) -> str:
        """Move to the next brace behind `at` for which `opens` is true, or to the end; how the text between begins."""
        shown = self.text[self.at : self.at + MAX_SHOWN_CHARS]
        passed = 0
        while True:
            match = _BRACE.search(self.text, self.at + self.text.startswith("{", self.at))
            to = (
                match.start(1)
                if match
                else len(self.text)
                if self._ended
                else max(self.at + 1, len(self.text) - 1024)
            )
            passed += to - self.at
            self.move(to)
            if (match and opens(self)) or self.at == len(self.text):
                return shown[:passed].rstrip(", \t\r\n")
