"""`loraforge prepare`: source files to packed, masked Parquet."""

from __future__ import annotations

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.progress import Progress
from pipelines.data.stage import prepare as prepare_dataset
from pipelines.storage import Store


def prepare(recipe: Recipe, store: Store, progress: Progress) -> PreparedDataset:
    """Prepare the recipe's dataset, or find it finished; the Ray cluster must be up."""
    return prepare_dataset(recipe, store, progress)
