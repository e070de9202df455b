"""An endpoint on the running Ray, taken down when its command ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.core.artifacts import Endpoint
from pipelines.core.progress import Progress
from pipelines.steps.inputs import Inputs
from pipelines.storage import Store
from serve_app.deploy import run_endpoint, stop_endpoint


@contextmanager
def running_endpoint(inputs: Inputs, store: Store, progress: Progress) -> Iterator[Endpoint]:
    """The endpoint of a recipe; stopped on exit, since a shared cluster runs on without us."""
    endpoint = run_endpoint(inputs, store, progress)
    try:
        yield endpoint
    finally:
        stop_endpoint(inputs.recipe)


def serve_until_stopped(inputs: Inputs, store: Store, progress: Progress) -> None:
    """Serve until the process is interrupted."""
    with running_endpoint(inputs, store, progress) as endpoint:
        if len(endpoint.models) == 1:
            progress.note(
                f"serve: no version on this base is promoted in {store.uri}, so only the base "
                "answers; run `loraforge run` first to serve an adapter"
            )
        messages = '[{"role": "user", "content": "..."}], "temperature": 0'
        body = f'{{"model": "{endpoint.models[-1]}", "messages": {messages}}}'
        progress.note(
            f"  curl {endpoint.url}/v1/chat/completions -H 'Content-Type: application/json' "
            f"-d '{body}'"
        )
        progress.note("  Ctrl-C stops it")
        threading.Event().wait()
