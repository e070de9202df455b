"""Early stopping: at which checkpoint a run ends, and that its best checkpoint remains."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.config.recipe import parse_recipe
from pipelines.core.artifacts import ArtifactRef, PreparedDataset, SplitStats
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.storage import Store
from pipelines.train.checkpoint.files import (
    checkpoint_key,
    checkpoint_kind,
    list_checkpoints,
    with_checksum,
)
from pipelines.train.checkpoint.retention import heldout_loss_of, prune, should_stop_early
from tests.stages import train

RUN = "c" * 64


def stops_after(losses: list[float], patience: int | None) -> int | None:
    """The number of checkpoints after which the run ends early, or None."""
    history: list[Any] = [{"heldout_loss": loss} for loss in losses]
    numbers = range(1, len(history) + 1)
    return next((n for n in numbers if should_stop_early(history[:n], patience)), None)


@pytest.mark.parametrize(
    ("losses", "patience", "ends"),
    [
        ([3, 2, 1, 1.5, 1.2, 1.1], 2, 5),
        ([3, 2, 1, 1.5, 0.9, 1.1, 0.9, 0.8], 2, 7),  # an equal loss is no improvement
        ([3, 2, 1, 0.5], 1, None),
        ([3, 3], 1, 2),
        ([1, 2], 2, None),
        ([1, 2, 3], 2, 3),
        ([1, 2, 3, 4, 5], None, None),
        ([float("nan"), 2, 3, 3], 2, 4),  # NaN is worse than any loss
        ([1, float("nan"), float("nan")], 2, 3),
    ],
)
def test_a_run_ends_after_patience_checkpoints_without_a_better_loss(
    losses: list[float], patience: int | None, ends: int | None
) -> None:
    assert stops_after(losses, patience) == ends


def test_the_best_checkpoint_outlives_later_ones(store: Store) -> None:
    losses = {10: 3.0, 20: 1.0, 30: 1.5, 40: 1.2}
    for step, loss in losses.items():
        with store.create_artifact(checkpoint_kind(RUN), checkpoint_key(RUN, step)) as draft:
            (draft.path / "state").write_text(str(step))
            draft.metadata = with_checksum(
                {"run_id": RUN, "step": step, "metrics": {"heldout_loss": loss}}
            )
        best = prune(store, RUN, keep=1)[0]
        assert heldout_loss_of(best) == min(v for s, v in losses.items() if s <= step)
    # The best, and the last to resume from.
    assert [c.step for c in list_checkpoints(store, RUN)] == [20, 40]


def test_patience_without_a_held_out_row_is_refused(store: Store, pocket_base: str) -> None:
    data = {
        "name": "x",
        "model": {"base": pocket_base},
        "data": {"sources": ["a.json"]},
        "train": {"patience": 2},
    }
    nothing = SplitStats(0, 0, 0, 0)
    prepared = PreparedDataset(
        ArtifactRef("prepared", "k", "d", "nowhere"),
        64,
        SplitStats(1, 1, 1, 1),
        nothing,
        {},
        "",
        "",
    )
    with pytest.raises(
        UserError,
        match="train.patience=2 waits for .* no held-out row: set data.heldout_share above 0",
    ):
        train(parse_recipe(data), store, prepared, None, SILENT)
