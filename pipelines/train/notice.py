"""What a run does when it is told that a node will be taken away: save at once, use the time left, save again and stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

from pipelines.train.engine import Engine

_MARGIN_S = 5.0  # for what is slower than last time, and for the news to reach the controller


class Answer(Enum):
    """What the step that has just ended is followed by."""

    GO_ON = "go on"
    SAVE = "save"
    SAVE_AND_STOP = "save and stop"


class Notice:
    """Decides after each step; the same on all ranks. `seconds_left` asks how long the node stays, None for no notice.

    The run stops when another step and two saves as long as the longest so far would not fit into the time that is left
    for certain. Without a deadline it trains on, with what it has saved at once.
    """

    def __init__(self, engine: Engine, seconds_left: Callable[[], float | None]) -> None:
        self._engine, self._seconds_left = engine, seconds_left
        self._told, self._save_s = False, 0.0

    def saved_in(self, seconds: float) -> None:
        """A checkpoint took so long, scoring included."""
        self._save_s = max(self._save_s, seconds)

    def after_step(self, step_s: float) -> Answer:
        """Collective."""
        left = self._seconds_left()
        if left is None:
            return Answer.GO_ON
        spare = left - (2 * self._save_s + step_s + _MARGIN_S)
        (spare,) = self._engine.sum_over_ranks(0.0 if self._engine.rank else spare)  # rank 0's clock decides
        news, self._told = not self._told, True
        if spare < 0 and math.isfinite(spare):
            return Answer.SAVE_AND_STOP
        return Answer.SAVE if news else Answer.GO_ON
