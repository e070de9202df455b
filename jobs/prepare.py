"""`loraforge prepare`: source files to packed, masked Parquet."""

from __future__ import annotations

from pipelines.contracts import PreparedDataset, Progress
from pipelines.data.dataset import prepare as prepare_dataset
from pipelines.recipe import Recipe
from pipelines.storage import Store


def prepare(recipe: Recipe, store: Store, progress: Progress) -> PreparedDataset:
    """Prepare the recipe's dataset, or find it finished; the Ray cluster must be up."""
    return prepare_dataset(recipe, store, progress)
