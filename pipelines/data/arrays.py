"""The elements of a JSON array, read through a window: a broken one costs itself, and no file is ever in memory whole."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import IO

from pipelines.data.raw import MAX_ROW_BYTES, MAX_SHOWN_CHARS, RawRow, broken, strict_decoder, why

_BETWEEN = re.compile(r"[\s,]*")
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:')


def read_array(stream: IO[bytes]) -> Iterator[RawRow]:
    """The elements, readable or not, each with its line. Behind a broken one, reading goes on where the next opens."""
    decode = strict_decoder().raw_decode
    window = _Window(io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    window.move(window.text.index("[") + 1)
    opening: re.Pattern[str] | None = None
    while window.skip_between():
        opening = opening or _opening(window)
        line = window.line
        if window.text[window.at] == "]":
            if window.ends_behind(window.at + 1):
                return
            yield broken(line, "the array ends here, and text follows", window.pass_over(opening, window.at))
            continue
        try:
            value, end = decode(window.text, window.at)
        except (ValueError, RecursionError) as error:
            yield broken(line, f"not JSON: {why(error)}", window.pass_over(opening, window.at + 1))
            if window.at == len(window.text):
                return
            continue
        yield RawRow(line, value)
        window.move(end)
    yield broken(window.line, "the array has no end: the file is cut off here", "(end of file)")


def _opening(window: _Window) -> re.Pattern[str]:
    """What the next elements begin with, seen on the first: its indentation where it has a line of its own, else its
    first key; the brace is group 1.
    """
    lead = window.text[window.text.rfind("\n", 0, window.at) + 1 : window.at]
    if not lead.strip() and "\n" in window.text[: window.at]:
        return re.compile(rf"^{re.escape(lead)}(\{{)", re.MULTILINE)
    key = _FIRST_KEY.match(window.text, window.at)
    return re.compile(rf"(?:,|\]\s*\[)\s*(\{{\s*{re.escape(key[1])}\s*:)" if key else r"(?:,|\]\s*\[)\s*(\{)")


class _Window:
    """The next MAX_ROW_BYTES characters of a text or more (`text` from `at` on) and the line that `at` is in, from 0."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream, self.text, self.at, self.line, self._ended = stream, "", 0, 0, False
        self.move(0)

    def move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to
        if len(self.text) - to < MAX_ROW_BYTES and not self._ended:
            more = self._stream.read(2 * MAX_ROW_BYTES)
            self._ended = not more
            self.text, self.at = self.text[to:] + more, 0

    def skip_between(self) -> bool:
        """Move to the next element or bracket; False at the end of the text."""
        while True:
            match = _BETWEEN.match(self.text, self.at)
            assert match is not None
            self.move(match.end())
            if self.at < len(self.text) or self._ended:
                return self.at < len(self.text)

    def ends_behind(self, place: int) -> bool:
        match = _BETWEEN.match(self.text, place)
        return match is not None and match.end() == len(self.text) and self._ended

    def pass_over(self, opening: re.Pattern[str], start: int) -> str:
        """Move to the brace of the next match from `start` on, or to the end of the text; how the text between begins."""
        shown = self.text[self.at : self.at + MAX_SHOWN_CHARS]
        passed = 0
        while True:
            match = opening.search(self.text, start)
            to = match.start(1) if match else len(self.text) if self._ended else max(self.at + 1, len(self.text) - 1024)
            passed += to - self.at
            self.move(to)
            start = self.at + 1
            if match or self.at == len(self.text):
                return shown[:passed].rstrip(", \t\r\n")
