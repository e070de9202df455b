"""`loraforge serve`: an OpenAI-compatible endpoint in the foreground."""

from __future__ import annotations

from jobs.options import DEFAULT_STORE, Overrides, RecipePath, StoreUri, Verbose
from jobs.session import open_session, ray_session


def serve(
    recipe: RecipePath,
    overrides: Overrides = None,
    store: StoreUri = DEFAULT_STORE,
    verbose: Verbose = False,
) -> None:
    """Answer over HTTP with the base and the promoted adapters until Ctrl-C."""
    session = open_session(recipe, overrides, store, verbose, needs_sources=False)
    from jobs.bases.checks import check_serves

    check_serves(session.recipe)
    from jobs.cluster.endpoint import serve_until_stopped

    with ray_session(verbose, resumes=False):
        serve_until_stopped(session.inputs, session.store, session.progress)
