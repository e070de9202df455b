"""Deletion of superseded checkpoints, and early stopping by their held-out losses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.core.artifacts import Checkpoint
from pipelines.storage import Store, remove
from pipelines.storage.folders import scratch_folder
from pipelines.train.checkpoint.files import CHECKPOINT_NAME, checkpoint_kind, list_checkpoints

_UNFINISHED = re.compile(r"\.tmp-([0-9a-f]{12})-.*")


def discard_after(store: Store, run_id: str, after_step: int) -> None:
    """Delete everything that a run resuming from `after_step` would meet on its way.

    These are checkpoints of later steps, checkpoints with a damaged manifest, and unfinished
    folders of killed writers. A folder that a living process still writes stays. Local stores only.
    """
    if not store.is_local:
        return
    root = Path(store.uri) / checkpoint_kind(run_id)
    valid = {Path(c.ref.uri) for c in list_checkpoints(store, run_id) if c.step <= after_step}
    for path in list(root.iterdir()) if root.exists() else ():
        unfinished = _UNFINISHED.fullmatch(path.name)
        if unfinished:
            # Entering the scratch folder of that name deletes those that no process has locked.
            with scratch_folder(root, unfinished[1]):
                pass
        elif CHECKPOINT_NAME.fullmatch(path.name) and path not in valid:
            remove(path)
    # `remove` also deletes the remains of killed deletions, even if there is nothing to remove.
    remove(root / "nothing")


def prune(store: Store, run_id: str, keep: int) -> list[Checkpoint]:
    """Delete all checkpoints but the `keep` best and the last; returns the remaining, best first.

    The best have the lowest held-out loss; of equal ones the later is better. The last one is there
    to resume from. Deletes in local stores only.
    """
    checkpoints = list_checkpoints(store, run_id)
    best_first = sorted(checkpoints, key=lambda c: (heldout_loss_of(c), -c.step))
    remaining = best_first[:keep]
    remaining += [c for c in checkpoints[-1:] if c not in remaining]
    for checkpoint in checkpoints:
        if checkpoint not in remaining and store.is_local:
            remove(Path(checkpoint.ref.uri))
    return remaining


def should_stop_early(history: Sequence[Mapping[str, float]], patience: int | None) -> bool:
    """True if none of the last `patience` checkpoints lowered the best held-out loss before them.

    `history` are the metrics of a run's checkpoints, oldest first. Never if `patience` is None.
    """
    losses = [_heldout_loss(metrics) for metrics in history]
    return (
        patience is not None
        and len(losses) > patience
        and min(losses[-patience:]) >= min(losses[:-patience])
    )


def heldout_loss_of(checkpoint: Checkpoint) -> float:
    """The checkpoint's held-out loss, for sorting: infinite if it has none."""
    return _heldout_loss(checkpoint.metrics)


def _heldout_loss(metrics: Mapping[str, float]) -> float:
    loss = metrics.get("heldout_loss")
    return loss if loss is not None and math.isfinite(loss) else math.inf
