"""What a run does when it is announced that a node will be reclaimed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pipelines.train.faults.preemption import Action, PreemptionPolicy


class OneRankEngine:
    """The part of an engine that a policy uses; its sums add `rank0_value`, as from rank 0."""

    def __init__(self, rank: int, rank0_value: float = 0.0) -> None:
        self.rank, self._rank0_value = rank, rank0_value

    def sum_over_ranks(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values) + self._rank0_value


def policy(seconds_left: Sequence[float | None], save_s: float = 0.0) -> PreemptionPolicy:
    """A policy that hears these answers in turn, after a save that took `save_s` seconds."""
    answers = iter(seconds_left)
    engine: Any = OneRankEngine(0)
    tested = PreemptionPolicy(engine, lambda: next(answers))
    tested.after_save(0.0, save_s)
    return tested


def actions(seconds_left: Sequence[float | None], step_s: float, save_s: float) -> list[Action]:
    tested = policy(seconds_left, save_s)
    return [tested.after_step(step_s) for _ in seconds_left]


def test_an_announcement_saves_once_and_stops_while_there_is_time_to_save() -> None:
    go_on, save, stop = Action.CONTINUE, Action.SAVE, Action.SAVE_AND_STOP
    assert actions([None, None], 1, 1) == [go_on, go_on]
    assert actions([None, 60, 50, 20, 9, 7.5], 1, 1) == [go_on, save, go_on, go_on, go_on, stop]
    # Two saves of 8 s and a step would end after the node; so would a step of 35 s.
    assert actions([60, 50, 20], 1, 8) == [save, go_on, stop]
    assert actions([60, 50, 40], 35, 1) == [save, go_on, stop]
    assert actions([3], 1, 1) == [stop]
    assert actions([math.inf, math.inf], 1, 1) == [save, go_on]


def test_a_slow_first_save_stops_the_run_before_another_step() -> None:
    slow = policy([20, 12])
    assert slow.after_step(2.0) is Action.SAVE and slow.after_save(2.0, 8.0)
    quick = policy([20, 19])
    assert quick.after_step(2.0) is Action.SAVE and not quick.after_save(2.0, 1.0)


def test_without_an_announcement_no_save_stops_a_run() -> None:
    """Nor is anybody asked: the empty list of answers would raise StopIteration."""
    assert not policy([]).after_save(2.0, 8.0)


def test_the_clock_of_rank_0_decides_for_all_ranks() -> None:
    late: Any = OneRankEngine(1, rank0_value=-1.0)
    assert PreemptionPolicy(late, lambda: 1000.0).after_step(1.0) is Action.SAVE_AND_STOP
    early: Any = OneRankEngine(1, rank0_value=500.0)
    assert PreemptionPolicy(early, lambda: 0.0).after_step(1.0) is Action.SAVE
