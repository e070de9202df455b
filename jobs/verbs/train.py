"""`loraforge train`: packed rows to verified checkpoints."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.cluster.ray import check_fits
from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import PreparedDataset, TrainingRun
from pipelines.core.errors import UserError
from pipelines.core.progress import Progress
from pipelines.data.audit.audit import refuse
from pipelines.packed.feed import RowFeed
from pipelines.storage import Store
from pipelines.train.stage import find_run
from pipelines.train.stage import train as train_run


def train(
    recipe: Recipe, store: Store, progress: Progress, prepared: PreparedDataset
) -> TrainingRun:
    """The training run of this recipe on this dataset: found, continued or made; the Ray cluster must be up.

    Raises UserError when the dataset's audit finds something wrong beyond the recipe's `data.audit`.
    """
    artifact = store.read(prepared.ref.uri)
    if artifact is None:
        raise UserError(
            f"{prepared.ref.uri}: the dataset is gone from the store; run `loraforge prepare` again"
        )
    refuse(artifact, prepared, recipe.data.audit)
    if find_run(recipe, store, prepared) is None:
        check_fits(recipe)
    with _own_interrupt():
        return train_run(recipe, store, prepared, RowFeed, progress)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Give Ctrl-C back afterwards: Ray Train takes it for its run and never returns it, so later stages would not stop."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
