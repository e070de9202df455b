"""`loraforge serve`: an OpenAI-compatible endpoint over the base and the promoted adapters."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import Endpoint
from pipelines.core.progress import Progress
from pipelines.storage import Store
from serve_app.deploy import run_endpoint, stop_endpoint


@contextmanager
def serving(recipe: Recipe, store: Store, progress: Progress) -> Iterator[Endpoint]:
    """The endpoint on the running Ray while inside; a cluster that was there before would else answer for ever."""
    endpoint = run_endpoint(recipe, store, progress)
    try:
        yield endpoint
    finally:
        stop_endpoint(recipe)


def serve(recipe: Recipe, store: Store, progress: Progress) -> None:
    """Answer until Ctrl-C."""
    with serving(recipe, store, progress) as endpoint:
        body = f'{{"model": "{endpoint.models[-1]}", "messages": [{{"role": "user", "content": "..."}}]}}'
        progress.note(
            f"  curl {endpoint.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
        )
        progress.note("  Ctrl-C stops it")
        threading.Event().wait()
