"""From token ids to text as they come: never half a character, never past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"


class TextStream:
    """Decodes an answer piece by piece.

    A piece is held back while its last character is not whole yet, or while its end may be the start of a stop string.
    With `at_once` everything is held back to the end, and nothing is decoded before it unless there are stop strings.
    Each token costs the same however long the answer is: only the last ids are decoded, with those of the piece before
    as context, since some tokenizers write a token otherwise at the start of a text.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], at_once: bool = False
    ) -> None:
        self._decode, self._stops = decode, stops
        self._lazy = at_once and not stops
        self._ids: list[int] = []
        self._context, self._read = (
            0,
            0,
        )  # ids[context:read] are decoded and known, ids[read:] not yet
        self._text = ""
        self._sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token makes certain."""
        self._ids.append(token)
        if self._lazy:
            return ""
        fresh = self._fresh()
        if fresh.endswith(_BROKEN):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._extend(fresh)

    def finish(self) -> str:
        """What was held back, when the answer ends here."""
        if self.stopped:
            return ""
        piece = self._extend(self._fresh())
        return piece if self.stopped else piece + self._take(len(self._text))

    def _fresh(self) -> str:
        known = (
            self._decode(self._ids[self._context : self._read])
            if self._context < self._read
            else ""
        )
        return self._decode(self._ids[self._context :])[len(known) :]

    def _extend(self, fresh: str) -> str:
        longest = max((len(stop) for stop in self._stops), default=0)
        from_ = max(0, len(self._text) - longest + 1)
        self._text += fresh
        ends = [at for at in (self._text.find(stop, from_) for stop in self._stops) if at >= 0]
        if ends:
            self.stopped = True
            return self._take(min(ends))
        return self._take(len(self._text) - self._may_start_a_stop(longest))

    def _take(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _may_start_a_stop(self, longest: int) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for size in range(min(longest - 1, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-size:]) for stop in self._stops):
                return size
        return 0
