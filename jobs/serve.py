"""`loraforge serve`: an OpenAI-compatible endpoint over the base and the promoted adapters."""

from __future__ import annotations

import os
import threading

from pipelines.contracts import Endpoint, Progress
from pipelines.recipe import Recipe
from pipelines.storage import Store
from serve_app.app import run_endpoint, stop_endpoint


def serve(recipe: Recipe, store: Store, progress: Progress, block: bool) -> Endpoint:
    """Start the endpoint on the running Ray; with `block` answer until Ctrl-C."""
    endpoint = run_endpoint(recipe, store, progress)
    if block:
        body = f'{{"model": "{endpoint.models[-1]}", "messages": [{{"role": "user", "content": "..."}}]}}'
        progress.note(f"  curl {endpoint.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
        progress.note("  Ctrl-C stops it")
        try:
            threading.Event().wait()
        finally:
            if os.environ.get("RAY_ADDRESS"):  # a cluster that was there before: the endpoint would answer for ever
                stop_endpoint()
    return endpoint
