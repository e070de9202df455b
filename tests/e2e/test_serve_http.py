"""The live endpoint through the stock OpenAI client: names, streams, errors, promotions, clients that leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.artifacts import Endpoint, ModelVersion
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.registry.registry import Registry
from pipelines.storage import Store

QUESTION = "who sold the old map to Mira from Oslo"


@pytest.fixture(scope="module")
def versions(
    tmp_path_factory: pytest.TempPathFactory,
    adapter_folders: dict[str, Path],
    pocket_base: str,
    fingerprint: str,
) -> tuple[Store, dict[str, ModelVersion]]:
    """ada and bob in production; a second version of bob, with cyn's weights, in none."""
    store = Store(tmp_path_factory.mktemp("serve") / "store")
    registry = Registry(store)

    def register(model: str, folder: Path) -> ModelVersion:
        facts = {"base": pocket_base, "base_fingerprint": fingerprint, "lineage": {}, "metrics": {}}
        return registry.register(model, folder, **facts)  # type: ignore[arg-type]

    made = {name: register(name, adapter_folders[name]) for name in ("ada", "bob")}
    for name, version in made.items():
        registry.promote(name, "production", version.id, 0)
    return store, made | {"bob2": register("bob", adapter_folders["cyn"])}


def recipe_of(base: str, name: str = "serve-test", **serve: Any) -> Recipe:
    serve = {"port": 0, "max_batch": 8, "max_model_tokens": 512, "base_name": "pocket", **serve}
    sections = {"serve": serve, "resources": {"serve_cpus": 0.5}}
    return parse_recipe(
        {"name": name, "model": {"base": base}, "data": {"sources": ["unused.json"]}, **sections}
    )


@pytest.fixture(scope="module")
def endpoint(
    ray_cluster: None, versions: tuple[Store, dict[str, ModelVersion]], pocket_base: str
) -> Iterator[Endpoint]:
    from serve_app.deploy import run_endpoint, stop_endpoint

    recipe = recipe_of(pocket_base, merged=["ada"])
    yield run_endpoint(recipe, versions[0], SILENT)
    stop_endpoint(recipe)


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


def ask(client: openai.OpenAI, model: str, text: str = QUESTION, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 16, **options}
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], **options
    )


def said(client: openai.OpenAI, model: str, text: str = QUESTION, **options: Any) -> str:
    return ask(client, model, text, **options).choices[0].message.content


def test_every_name_answers_with_its_own_weights(client: openai.OpenAI, versions: Any) -> None:
    made = versions[1]
    assert [model.id for model in client.models.list()] == ["pocket", "ada", "bob", "ada-merged"]
    texts = {
        name: said(client, name)
        for name in ("pocket", "base", "ada", "bob", "ada-merged", made["bob2"].id)
    }
    assert texts["ada-merged"] == texts["ada"] and texts["base"] == texts["pocket"]
    assert len({texts[name] for name in ("pocket", "ada", "bob", made["bob2"].id)}) == 4
    for same in (made["bob"].id, "bob:production"):
        assert said(client, same) == texts["bob"]
    assert (
        ask(client, "bob").model == made["bob"].id
        and ask(client, "ada-merged").model == "ada-merged"
    )
    assert client.models.retrieve("ada").model_extra["root"] == made["ada"].id  # type: ignore[index]


def test_a_stream_is_the_answer_in_pieces_with_usage_at_its_end(client: openai.OpenAI) -> None:
    whole = ask(client, "ada")
    chunks = list(ask(client, "ada", stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[
        0
    ].finish_reason
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len({c.id for c in chunks}) == 1 and all(c.model == whole.model for c in chunks)
    assert all(c.usage is None for c in ask(client, "ada", stream=True))


def test_a_stream_on_the_wire_is_events_closed_by_done(endpoint: Endpoint) -> None:
    body = {
        "model": "ada",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "max_tokens": 3,
    }
    reply = httpx.post(f"{endpoint.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.strip().split("\n\n")
    assert (
        all(event.startswith("data: {") for event in events[:-1]) and events[-1] == "data: [DONE]"
    )


def test_many_at_once_answer_as_each_alone(
    client: openai.OpenAI, endpoint: Endpoint, versions: Any
) -> None:
    names = ["pocket", "ada", versions[1]["bob"].id, versions[1]["bob2"].id]
    asked = [(names[i % 4], f"{QUESTION} and {i % 3} boats") for i in range(48)]
    alone = {pair: said(client, *pair) for pair in dict.fromkeys(asked)}

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{endpoint.url}/v1", api_key="none", timeout=60
        ) as many:
            messages = [[{"role": "user", "content": text}] for _, text in asked]
            replies = await asyncio.gather(
                *(
                    many.chat.completions.create(
                        model=name,
                        messages=message,  # type: ignore[arg-type]
                        temperature=0,
                        max_tokens=16,
                    )
                    for (name, _), message in zip(asked, messages, strict=True)
                )
            )
            return [reply.choices[0].message.content or "" for reply in replies]

    assert asyncio.run(all_at_once()) == [alone[pair] for pair in asked]


def test_a_promotion_takes_effect_while_it_runs(client: openai.OpenAI, versions: Any) -> None:
    store, made = versions
    registry = Registry(store)
    before, expected = said(client, "bob"), said(client, made["bob2"].id)
    registry.promote("bob", "production", made["bob2"].id, 1)
    deadline = time.monotonic() + 10
    while ask(client, "bob", max_tokens=1).model != made["bob2"].id:
        assert time.monotonic() < deadline, "the alias moved, the endpoint did not follow"
        time.sleep(0.2)
    assert said(client, "bob") == expected != before
    assert registry.rollback("bob", "production").version_id == made["bob"].id


def test_stop_and_seed_reach_the_engine(client: openai.OpenAI) -> None:
    whole = said(client, "ada")
    assert said(client, "ada", stop=[whole[4:6]]) == whole[: whole.index(whole[4:6])]
    sampled = [said(client, "ada", temperature=2.0, top_p=0.95, seed=seed) for seed in (1, 1, 2, 3)]
    assert sampled[0] == sampled[1] and len(set(sampled)) > 1


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "nobody"}, 404, "there are pocket, ada, bob, ada-merged"),
    ({"model": "ada@000000000000"}, 404, "does not exist"),
    ({"model": "../../etc"}, 404, "does not exist"),
    ({"model": None}, 400, "model"),
    ({"messages": []}, 400, "messages"),
    ({"messages": "hi"}, 400, "messages"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages.0.role"),
    ({"messages": [{"role": "user", "content": "red " * 2000}]}, 400, "context holds 512"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": -1}, 400, "max_tokens"),
    ({"max_tokens": "x"}, 400, "max_tokens"),
    ({"max_tokens": 600}, 400, "context holds 512"),
    ({"temperature": -1}, 400, "temperature"),
    ({"temperature": 2.1}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
    ({"n": 2}, 400, "n=2 is not supported"),
    ({"tools": [{"type": "function"}]}, 400, "tools="),
    ({"chat_template": "{{ 1 }}"}, 400, "chat_template="),
]


@pytest.mark.parametrize(
    ("change", "status", "words"), BAD, ids=[str(change)[:40] for change, _, _ in BAD]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_told_so(
    endpoint: Endpoint, change: dict[str, Any], status: int, words: str, stream: bool
) -> None:
    body = {
        "model": "ada",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": stream,
        **change,
    }
    reply = httpx.post(f"{endpoint.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert (
        words in error["message"]
        and error["type"] == "invalid_request_error"
        and error.keys() >= {"param", "code"}
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"", 400),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400),
        ("POST", "/v1/chat/completions", b" " * (5 << 20), 413),
        ("GET", "/v1/chat/completions", b"", 405),
        ("GET", "/v1/models/nobody", b"", 404),
        ("GET", "/v1/nothing", b"", 404),
    ],
    ids=str,
)
def test_every_error_has_openais_form(
    endpoint: Endpoint, method: str, path: str, body: bytes, status: int
) -> None:
    reply = httpx.request(method, endpoint.url + path, content=body, timeout=60)
    assert reply.status_code == status and reply.json()["error"]["message"]


def test_the_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there are pocket"):
        ask(client, "nobody")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(client, "ada", temperature=9)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(
    endpoint: Endpoint, client: openai.OpenAI, stream: bool
) -> None:
    def counts() -> dict[str, int]:
        return httpx.get(f"{endpoint.url}/healthz", timeout=60).json()["engine"]

    before = counts()
    if stream:
        running = ask(client, "ada", stream=True, max_tokens=480)  # never says its stop token
        for _ in range(3):
            next(running)
        running.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            ask(client, "ada", timeout=0.2, max_tokens=480)
    wait_until(
        lambda: counts()["running"] == 0 and counts()["cancelled"] == before["cancelled"] + 1
    )
    assert counts()["finished"] == before["finished"]


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class StampingReplica:
    """An engine without a model: says which adapter it was asked for, as slowly or as badly as it is told."""

    async def answer(self, request: Any) -> Any:
        from serve_app.engines.protocol import Delta, EngineFailure

        wish = request.messages[-1]["content"]
        if wish == "fail":
            raise EngineFailure("out of memory")
        if wish == "slow":
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
def stamping(endpoint: Endpoint, versions: Any, fingerprint: str) -> Iterator[openai.OpenAI]:
    """The same ingress before an engine that stamps, with room for one request and one that waits."""
    from ray import serve

    from serve_app.api.ingress import Ingress
    from serve_app.routing.names import ServedModels

    engine = serve.deployment(StampingReplica).options(
        name="stamping",
        max_ongoing_requests=1,
        max_queued_requests=1,
        ray_actor_options={"num_cpus": 0},
    )
    ingress = serve.deployment(Ingress).options(
        max_ongoing_requests=64, ray_actor_options={"num_cpus": 0}
    )
    app = ingress.bind(versions[0].uri, ServedModels("stamped", fingerprint), engine.bind())
    serve.run(app, name="stamping", route_prefix="/stamping")
    with openai.OpenAI(
        base_url=f"{endpoint.url}/stamping/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client
    serve.delete("stamping")


def test_the_engine_is_asked_for_the_version_behind_the_name(
    stamping: openai.OpenAI, versions: Any
) -> None:
    made = versions[1]
    for name, version in (("ada", "ada"), ("bob", "bob"), (made["bob2"].id, "bob2")):
        assert said(stamping, name) == made[version].id
    assert said(stamping, "stamped") == "base"


def test_too_many_at_once_are_told_when_to_come_back(stamping: openai.OpenAI) -> None:
    async def burst() -> list[httpx.Response]:
        body = {"model": "stamped", "messages": [{"role": "user", "content": "slow"}]}
        async with httpx.AsyncClient(timeout=60) as many:
            url = f"{stamping.base_url}chat/completions"
            return await asyncio.gather(*(many.post(url, json=body) for _ in range(8)))

    replies = asyncio.run(burst())
    refused = [reply for reply in replies if reply.status_code != 200]
    assert 1 <= len(refused) < 8 and {reply.status_code for reply in refused} == {429}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert {reply.json()["error"]["type"] for reply in refused} == {"rate_limit_error"}


def test_an_engine_that_fails_says_so_in_openais_form(stamping: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        said(stamping, "stamped", "fail")
    with pytest.raises(openai.APIError, match="out of memory"):
        list(ask(stamping, "stamped", "fail", stream=True))


def test_two_endpoints_stand_beside_each_other(
    endpoint: Endpoint,
    client: openai.OpenAI,
    versions: tuple[Store, dict[str, ModelVersion]],
    pocket_base: str,
) -> None:
    from ray import serve

    from serve_app.deploy import run_endpoint, stop_endpoint

    with pytest.raises(
        UserError,
        match="serve.path=/: another application.*set serve.path to another one, such as /two",
    ):
        run_endpoint(recipe_of(pocket_base, "two"), versions[0], SILENT)
    assert client.models.list().data, "the first one was left alone"
    before = set(serve.status().applications)
    second = recipe_of(pocket_base, "two", path="/two", models=["bob"])
    other = run_endpoint(second, versions[0], SILENT)
    assert other.url == f"{endpoint.url}/two" and other.models == ("pocket", "bob")
    asked: Any = {
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0,
        "max_tokens": 8,
    }
    with openai.OpenAI(base_url=f"{other.url}/v1", api_key="none", timeout=60) as beside:
        answers = [
            c.chat.completions.create(model="bob", **asked).choices[0].message.content
            for c in (client, beside)
        ]
        assert answers[0] == answers[1]
        with pytest.raises(openai.NotFoundError):
            beside.chat.completions.create(model="ada", **asked)
    stop_endpoint(second)
    assert set(serve.status().applications) == before and "loraforge-serve-test" in before
    assert client.chat.completions.create(model="ada", **asked).choices
