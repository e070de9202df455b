"""The ingress in front of an engine without a model: routing, back pressure and failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from pipelines.config.schema import ServeConfig
from tests.chat_client import answer_text, ask


class StampingReplica:
    """An engine without a model that answers with the version id of the requested adapter.

    The message "slow" delays the answer, and "fail" makes it fail.
    """

    async def answer(self, request: Any) -> Any:
        from serve_app.engines.protocol import Delta, EngineFailure

        text = request.messages[-1]["content"]
        if text == "fail":
            raise EngineFailure("out of memory")
        if text == "slow":
            await asyncio.sleep(2)
        return Delta(request.adapter.version_id if request.adapter else "base", "stop", 1, 1)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        from serve_app.engines.protocol import Delta, EngineFailure

        yield Delta("one ")
        if request.messages[-1]["content"] == "fail":
            raise EngineFailure("out of memory")
        yield Delta("two", "stop", 1, 2)

    async def stats(self) -> dict[str, int]:
        return {}


@pytest.fixture(scope="module")
def client(ray_cluster: None, registered: Any, fingerprint: str) -> Iterator[openai.OpenAI]:
    """A client of the ingress before a stamping engine that runs one request and queues one."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    from serve_app.api.ingress import Ingress
    from serve_app.routing.names import ServedModels
    from serve_app.routing.offer import choose_port

    assert not serve.status().proxies, "an earlier test left its endpoint running"
    port = choose_port(ServeConfig(port=0))
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    engine = serve.deployment(StampingReplica).options(
        name="stamping",
        max_ongoing_requests=1,
        max_queued_requests=1,
        ray_actor_options={"num_cpus": 0},
    )
    ingress = serve.deployment(Ingress).options(
        max_ongoing_requests=64, ray_actor_options={"num_cpus": 0}
    )
    app = ingress.bind(registered[0].uri, ServedModels("stamped", fingerprint), engine.bind())
    serve.run(app, name="stamping", route_prefix="/stamping")
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/stamping/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client
    serve.shutdown()


def test_the_engine_gets_the_version_behind_the_name(
    client: openai.OpenAI, registered: Any
) -> None:
    versions = registered[1]
    for name, key in (("ada", "ada"), ("bob", "bob"), (versions["bob2"].id, "bob2")):
        assert answer_text(client, name) == versions[key].id
    assert answer_text(client, "stamped") == "base"


def test_requests_beyond_the_queue_get_429_with_a_time_to_retry(client: openai.OpenAI) -> None:
    async def burst() -> list[httpx.Response]:
        body = {"model": "stamped", "messages": [{"role": "user", "content": "slow"}]}
        async with httpx.AsyncClient(timeout=60) as http:
            url = f"{client.base_url}chat/completions"
            return await asyncio.gather(*(http.post(url, json=body) for _ in range(8)))

    replies = asyncio.run(burst())
    refused = [reply for reply in replies if reply.status_code != 200]
    assert 1 <= len(refused) < 8 and {reply.status_code for reply in refused} == {429}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert {reply.json()["error"]["type"] for reply in refused} == {"rate_limit_error"}


def test_a_failing_engine_gives_an_error_in_openais_form(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        answer_text(client, "stamped", "fail")
    with pytest.raises(openai.APIError, match="out of memory"):
        list(ask(client, "stamped", "fail", stream=True))
