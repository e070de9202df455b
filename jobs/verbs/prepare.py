"""`loraforge prepare`: source files to packed, masked Parquet."""

from __future__ import annotations

from jobs.options import DEFAULT_STORE, Overrides, RecipePath, StoreUri, Verbose, Verify
from jobs.session import open_session


def prepare(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verify: Verify = False,
    verbose: Verbose = False,
) -> None:
    """Tokenize, mask, pack and split the dataset."""
    session = open_session(recipe, overrides, store, verbose, verify=verify, needs_weights=False)
    from pipelines.data.stage import prepare_step

    with session.runner() as runner:
        runner.run(prepare_step(session.inputs))
