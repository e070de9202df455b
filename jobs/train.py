"""`loraforge train`: packed rows to verified checkpoints."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.cluster import check_fits
from pipelines.contracts import PreparedDataset, Progress, TrainingRun, UserError
from pipelines.data.audit import refuse
from pipelines.data.dataset import RowFeed
from pipelines.recipe import Recipe
from pipelines.storage import Store
from pipelines.train.ray_train import find_run
from pipelines.train.ray_train import train as train_run


def train(recipe: Recipe, store: Store, progress: Progress, prepared: PreparedDataset) -> TrainingRun:
    """The training run of this recipe on this dataset: found, continued or made; the Ray cluster must be up.

    Raises UserError when the dataset's audit finds something wrong beyond the recipe's `data.audit`.
    """
    artifact = store.read(prepared.ref.uri)
    if artifact is None:
        raise UserError(f"{prepared.ref.uri}: the dataset is gone from the store; run `loraforge prepare` again")
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
