"""Preemption policy: when a node will be reclaimed, save at once, train on, save again and stop."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from pipelines.train.engine.protocol import Engine

_MARGIN_S = 5.0  # for a save slower than the last, and for the controller to hear of the stop


class Action(Enum):
    """The action after the step that has just ended."""

    CONTINUE = "continue"
    SAVE = "save"
    SAVE_AND_STOP = "save and stop"


class PreemptionPolicy:
    """Decides after each step and each save; the decision is the same on all ranks.

    `seconds_left` returns how long the node stays, infinite without a deadline, None if no node of
    the run is announced to go. The first announcement causes a save. After that the run trains on
    and stops while there is certainly time: when a further step and two saves, each as long as the
    longest so far, would not fit. Without a deadline it never stops.
    """

    def __init__(self, engine: Engine, seconds_left: Callable[[], float | None]) -> None:
        self._engine, self._seconds_left = engine, seconds_left
        self._announced, self._longest_save_s = False, 0.0

    def after_step(self, step_s: float) -> Action:
        """The action after a step of `step_s` seconds. Collective."""
        spare_s = self._spare_s(step_s)
        if spare_s is None:
            return Action.CONTINUE
        is_first, self._announced = not self._announced, True
        if spare_s < 0:
            return Action.SAVE_AND_STOP
        return Action.SAVE if is_first else Action.CONTINUE

    def after_save(self, step_s: float, save_s: float) -> bool:
        """True to stop after a save that took `save_s` seconds, scoring included. Collective."""
        self._longest_save_s = max(self._longest_save_s, save_s)
        spare_s = self._spare_s(step_s) if self._announced else None
        return spare_s is not None and spare_s < 0

    def _spare_s(self, step_s: float) -> float | None:
        """Seconds left after one more step and two saves. The clock of rank 0 decides for all."""
        left_s = self._seconds_left()
        if left_s is None:
            return None
        needed_s = 2 * self._longest_save_s + step_s + _MARGIN_S
        spare_s = left_s - needed_s if self._engine.rank == 0 else 0.0
        return float(self._engine.sum_over_ranks([spare_s]))
