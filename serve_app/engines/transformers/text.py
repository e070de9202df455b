"""Token ids to text, one by one: never half a character, never past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"


class TextStream:
    """Decodes an answer piece by piece.

    Text is withheld while its last character is incomplete, or while its end may be the start of a
    stop string. With `at_once` all text is withheld until the end, and without stop strings nothing
    is decoded before it. Each token costs the same however long the answer is: only the last ids
    are decoded, with those of the previous piece as context, since some tokenizers decode a token
    differently at the start of a text.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], at_once: bool = False
    ) -> None:
        self._decode, self._stops = decode, stops
        self._lazy = at_once and not stops
        self._ids: list[int] = []
        # ids[context:read] are the previous piece, ids[read:] are not in `_text` yet.
        self._context, self._read = 0, 0
        self._text = ""
        self._sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain to be part of the answer."""
        self._ids.append(token)
        if self._lazy:
            return ""
        fresh = self._fresh()
        if fresh.endswith(_BROKEN):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._extend(fresh)

    def finish(self) -> str:
        """The withheld text, when the answer ends here."""
        if self.stopped:
            return ""
        piece = self._extend(self._fresh())
        return piece if self.stopped else piece + self._take(len(self._text))

    def _fresh(self) -> str:
        previous = self._ids[self._context : self._read]
        start = len(self._decode(previous)) if previous else 0
        return self._decode(self._ids[self._context :])[start:]

    def _extend(self, fresh: str) -> str:
        longest = max((len(stop) for stop in self._stops), default=0)
        from_ = max(0, len(self._text) - longest + 1)
        self._text += fresh
        starts = [self._text.find(stop, from_) for stop in self._stops]
        if any(start >= 0 for start in starts):
            self.stopped = True
            return self._take(min(start for start in starts if start >= 0))
        return self._take(len(self._text) - self._may_start_a_stop(longest))

    def _take(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _may_start_a_stop(self, longest: int) -> int:
        """The length of the longest end of the text with which a stop string may begin."""
        for size in range(min(longest - 1, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-size:]) for stop in self._stops):
                return size
        return 0
