"""From token ids to text as they come: never half a character, never past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"


class TextStream:
    """Decodes an answer piece by piece.

    A piece is held back while its last character is not whole yet, or while its end may be the start of a stop string.
    With `at_once` everything is held back to the end, and nothing is decoded before it unless there are stop strings.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], at_once: bool = False) -> None:
        self._decode, self._stops, self._at_once = decode, stops, at_once
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token makes certain."""
        self._ids.append(token)
        if self._at_once and not self._stops:
            return ""
        text = self._decode(self._ids)
        for stop in self._stops:
            at = text.find(stop)
            if at >= 0:
                self.stopped = True
                text = text[:at]
        if self.stopped:
            return self._take(text, len(text))
        return self._take(text, len(text.rstrip(_BROKEN)) - self._may_start_a_stop(text))

    def finish(self) -> str:
        """What was held back, when the answer ends here."""
        if self.stopped:
            return ""
        text = self._decode(self._ids)
        return self._take(text, len(text))

    def _take(self, text: str, end: int) -> str:
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _may_start_a_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=0)
        for size in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
