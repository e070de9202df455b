"""What a run does when it is told that a node will be taken away: save at once, use the time left, save again and stop."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from pipelines.train.engine.protocol import Engine

_MARGIN_S = 5.0  # for what is slower than last time, and for the news to reach the controller


class Action(Enum):
    """What the step that has just ended is followed by."""

    GO_ON = "go on"
    SAVE = "save"
    SAVE_AND_STOP = "save and stop"


class PreemptionPolicy:
    """Decides after each step; the same on all ranks. `seconds_left` asks how long the node stays, None for no notice.

    The run stops while there is time left for certain: when another step and two saves, each as long as the longest so
    far, would not fit. Without a deadline it trains on, with what it has saved at once.
    """

    def __init__(self, engine: Engine, seconds_left: Callable[[], float | None]) -> None:
        self._engine, self._seconds_left = engine, seconds_left
        self._told, self._save_s = False, 0.0

    def after_step(self, step_s: float) -> Action:
        """Collective."""
        spare = self._spare(step_s)
        if spare is None:
            return Action.GO_ON
        news, self._told = not self._told, True
        if spare < 0:
            return Action.SAVE_AND_STOP
        return Action.SAVE if news else Action.GO_ON

    def after_save(self, step_s: float, save_s: float) -> bool:
        """Whether to stop now, given that a checkpoint took so long, scoring included. Collective."""
        self._save_s = max(self._save_s, save_s)
        spare = self._spare(step_s) if self._told else None
        return spare is not None and spare < 0

    def _spare(self, step_s: float) -> float | None:
        """Seconds that are left over after a step and two saves, by the clock and the watch of rank 0."""
        left = self._seconds_left()
        if left is None:
            return None
        spare = left - (2 * self._save_s + step_s + _MARGIN_S) if self._engine.rank == 0 else 0.0
        return float(self._engine.sum_over_ranks([spare]))
