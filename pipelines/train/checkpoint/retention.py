"""Which checkpoints are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.core.artifacts import Checkpoint
from pipelines.storage import Store, remove
from pipelines.storage.folders import scratch_folder
from pipelines.train.checkpoint.files import _LEFTOVER, _NAME, checkpoint_kind, list_checkpoints


def discard_after(store: Store, run_id: str, after_step: int) -> None:
    """Delete what lies in the way of a run that goes on from `after_step`, once no other process writes it.

    That are the checkpoints after that step and those whose manifest is damaged, and what killed writers left hidden.
    """
    if not store.is_local:
        return
    root = Path(store.uri) / checkpoint_kind(run_id)
    sound = {Path(c.ref.uri) for c in list_checkpoints(store, run_id) if c.step <= after_step}
    for path in list(root.iterdir()) if root.exists() else ():
        leftover = _LEFTOVER.fullmatch(path.name)
        if leftover:
            with scratch_folder(root, leftover[1]):  # which deletes what nobody writes any more
                pass
        elif _NAME.fullmatch(path.name) and path not in sound:
            remove(path)
    remove(root / "nothing")  # and with it what is left of earlier deletions


def prune(store: Store, run_id: str, keep: int) -> list[Checkpoint]:
    """Delete what is not worth keeping; returns the kept, best held-out loss first.

    Kept are the `keep` best by held-out loss, of equal ones the latest, and the last one, from which a run goes on. Only
    local stores are swept.
    """
    made = list_checkpoints(store, run_id)
    best = sorted(made, key=lambda checkpoint: (heldout_loss_of(checkpoint), -checkpoint.step))[
        :keep
    ]
    kept = best + [c for c in made[-1:] if c not in best]
    for checkpoint in made:
        if checkpoint not in kept and store.is_local:
            remove(Path(checkpoint.ref.uri))
    return kept


def heldout_loss_of(checkpoint: Checkpoint) -> float:
    """The checkpoint's held-out loss for sorting; infinite where there is none."""
    return _heldout_loss_in(checkpoint.metrics)


def is_stale(history: Sequence[Mapping[str, float]], patience: int | None) -> bool:
    """Whether the last `patience` checkpoints brought no better held-out loss than those before them."""
    losses = [_heldout_loss_in(metrics) for metrics in history]
    return (
        patience is not None
        and len(losses) > patience
        and min(losses[-patience:]) >= min(losses[:-patience])
    )


def _heldout_loss_in(metrics: Mapping[str, float]) -> float:
    loss = metrics.get("heldout_loss")
    return loss if loss is not None and math.isfinite(loss) else math.inf
