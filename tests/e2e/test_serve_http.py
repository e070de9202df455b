"""The live endpoint through the stock OpenAI client: names, streams, errors and promotions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.artifacts import Endpoint, ModelVersion
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.registry.registry import Registry
from pipelines.steps.inputs import Inputs
from pipelines.storage import Store
from tests.chat_client import QUESTION, answer_text, ask


def recipe_of(base: str, name: str = "serve-test", **serve: Any) -> Recipe:
    serve = {"port": 0, "max_batch": 8, "max_model_tokens": 512, "base_name": "pocket", **serve}
    sections = {"serve": serve, "resources": {"serve_cpus": 0.5}}
    return parse_recipe(
        {"name": name, "model": {"base": base}, "data": {"sources": ["unused.json"]}, **sections}
    )


@pytest.fixture(scope="module")
def endpoint(
    ray_cluster: None, registered: tuple[Store, dict[str, ModelVersion]], pocket_base: str
) -> Iterator[Endpoint]:
    from serve_app.deploy import run_endpoint, stop_endpoint

    recipe = recipe_of(pocket_base, merged=["ada"])
    yield run_endpoint(Inputs(recipe), registered[0], SILENT)
    stop_endpoint(recipe)


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


def test_every_name_answers_with_its_own_weights(client: openai.OpenAI, registered: Any) -> None:
    versions = registered[1]
    assert [model.id for model in client.models.list()] == ["pocket", "ada", "bob", "ada-merged"]
    texts = {
        name: answer_text(client, name)
        for name in ("pocket", "base", "ada", "bob", "ada-merged", versions["bob2"].id)
    }
    assert texts["ada-merged"] == texts["ada"] and texts["base"] == texts["pocket"]
    assert len({texts[name] for name in ("pocket", "ada", "bob", versions["bob2"].id)}) == 4
    for name in (versions["bob"].id, "bob:production"):
        assert answer_text(client, name) == texts["bob"]
    assert ask(client, "bob").model == versions["bob"].id
    assert ask(client, "ada-merged").model == "ada-merged"
    model: Any = client.models.retrieve("ada")
    assert model.model_extra["root"] == versions["ada"].id


def test_a_stream_is_the_answer_in_pieces_and_ends_with_usage(client: openai.OpenAI) -> None:
    reply = ask(client, "ada")
    choice = reply.choices[0]
    chunks = list(ask(client, "ada", stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0] for c in chunks if c.choices]
    assert "".join(piece.delta.content or "" for piece in pieces) == choice.message.content
    assert pieces[-1].finish_reason == choice.finish_reason
    assert chunks[-1].usage == reply.usage and not chunks[-1].choices
    assert len({c.id for c in chunks}) == 1 and all(c.model == reply.model for c in chunks)
    assert all(c.usage is None for c in ask(client, "ada", stream=True))


def test_a_stream_is_sent_as_events_and_ends_with_done(endpoint: Endpoint) -> None:
    body = {
        "model": "ada",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "max_tokens": 3,
    }
    reply = httpx.post(f"{endpoint.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.strip().split("\n\n")
    assert all(event.startswith("data: {") for event in events[:-1])
    assert events[-1] == "data: [DONE]"


def test_concurrent_requests_get_the_same_answers_as_single_ones(
    client: openai.OpenAI, endpoint: Endpoint, registered: Any
) -> None:
    names = ["pocket", "ada", registered[1]["bob"].id, registered[1]["bob2"].id]
    questions = [(names[i % 4], f"{QUESTION} and {i % 3} boats") for i in range(48)]
    alone = {pair: answer_text(client, *pair) for pair in dict.fromkeys(questions)}

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{endpoint.url}/v1", api_key="none", timeout=60
        ) as many:
            messages = [[{"role": "user", "content": text}] for _, text in questions]
            replies = await asyncio.gather(
                *(
                    many.chat.completions.create(
                        model=name,
                        messages=message,  # type: ignore[arg-type]
                        temperature=0,
                        max_tokens=16,
                    )
                    for (name, _), message in zip(questions, messages, strict=True)
                )
            )
            return [reply.choices[0].message.content or "" for reply in replies]

    assert asyncio.run(all_at_once()) == [alone[pair] for pair in questions]


def test_a_running_endpoint_follows_a_promotion(client: openai.OpenAI, registered: Any) -> None:
    store, versions = registered
    registry = Registry(store)
    before, expected = answer_text(client, "bob"), answer_text(client, versions["bob2"].id)
    registry.promote("bob", "production", versions["bob2"].id, 1)
    deadline = time.monotonic() + 10
    while ask(client, "bob", max_tokens=1).model != versions["bob2"].id:
        assert time.monotonic() < deadline, "the endpoint did not follow the alias"
        time.sleep(0.2)
    assert answer_text(client, "bob") == expected != before
    assert registry.rollback("bob", "production").version_id == versions["bob"].id


def test_stop_and_seed_reach_the_engine(client: openai.OpenAI) -> None:
    text = answer_text(client, "ada")
    assert answer_text(client, "ada", stop=[text[4:6]]) == text[: text.index(text[4:6])]
    sampled = [
        answer_text(client, "ada", temperature=2.0, top_p=0.95, seed=seed) for seed in (1, 1, 2, 3)
    ]
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
def test_a_bad_request_gets_an_error_that_names_the_problem(
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
    assert words in error["message"] and error["type"] == "invalid_request_error"
    assert error.keys() >= {"param", "code"}
    if status == 404:
        assert (error["code"], error["param"]) == ("model_not_found", "model")


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
def test_every_http_error_has_openais_form(
    endpoint: Endpoint, method: str, path: str, body: bytes, status: int
) -> None:
    reply = httpx.request(method, endpoint.url + path, content=body, timeout=60)
    assert reply.status_code == status and reply.json()["error"]["message"]


def test_the_stock_client_raises_its_own_error_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there are pocket"):
        ask(client, "nobody")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(client, "ada", temperature=9)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_slot(
    endpoint: Endpoint, client: openai.OpenAI, stream: bool
) -> None:
    def counts() -> dict[str, int]:
        return httpx.get(f"{endpoint.url}/healthz", timeout=60).json()["engine"]

    before = counts()
    if stream:
        running = ask(
            client, "ada", stream=True, max_tokens=480
        )  # the model never emits its stop token here
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


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_endpoints_run_on_one_cluster(
    endpoint: Endpoint,
    client: openai.OpenAI,
    registered: tuple[Store, dict[str, ModelVersion]],
    pocket_base: str,
) -> None:
    from ray import serve

    from serve_app.deploy import run_endpoint, stop_endpoint

    with pytest.raises(
        UserError,
        match="serve.path=/: another application.*set serve.path to another one, such as /two",
    ):
        run_endpoint(Inputs(recipe_of(pocket_base, "two")), registered[0], SILENT)
    assert client.models.list().data, "the first endpoint was affected"
    before = set(serve.status().applications)
    second = recipe_of(pocket_base, "two", path="/two", models=["bob"])
    other = run_endpoint(Inputs(second), registered[0], SILENT)
    assert other.url == f"{endpoint.url}/two" and other.models == ("pocket", "bob")
    options: Any = {
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0,
        "max_tokens": 8,
    }
    with openai.OpenAI(base_url=f"{other.url}/v1", api_key="none", timeout=60) as second_client:
        answers = [
            c.chat.completions.create(model="bob", **options).choices[0].message.content
            for c in (client, second_client)
        ]
        assert answers[0] == answers[1]
        with pytest.raises(openai.NotFoundError):
            second_client.chat.completions.create(model="ada", **options)
    stop_endpoint(second)
    assert set(serve.status().applications) == before and "loraforge-serve-test" in before
    assert client.chat.completions.create(model="ada", **options).choices
