"""The transformers engine against plain `generate`: the same answers in any company, and freed places."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.chat import ChatRenderer
from pipelines.contracts import UserError
from pipelines.model.base import load_base
from pipelines.model.lora import add_adapter
from pipelines.sections import ModelConfig, ServeConfig
from serve_app.engine import AdapterRef, Delta, GenerationRequest, RequestError
from serve_app.engines.transformers import TransformersEngine

WORDS = "the cook has two red hats and one old boat in the port of Ghent near a small house".split()


@pytest.fixture(scope="module")
def renderer(pocket_base: str) -> ChatRenderer:
    return ChatRenderer.load(pocket_base)


@pytest.fixture
def engine(pocket_base: str, renderer: ChatRenderer, adapter_folders: dict[str, Path]) -> TransformersEngine:
    def fetch(adapter: AdapterRef) -> Path:
        if adapter.version_id not in adapter_folders:
            raise UserError(f"{adapter.version_id}: gone")
        return adapter_folders[adapter.version_id]

    config = ServeConfig(max_batch=6, max_model_tokens=160, max_adapters=2)
    return TransformersEngine(load_base(ModelConfig(base=pocket_base), "cpu"), renderer, config, fetch)


def ref(name: str | None) -> AdapterRef | None:
    return AdapterRef(f"key{name}", name) if name else None


def question(number: int) -> list[dict[str, str]]:
    chosen = random.Random(number)
    words = [chosen.choice(WORDS) for _ in range(chosen.randint(1, 25))]
    return [{"role": "user", "content": " ".join(words)}]


async def whole(engine: TransformersEngine, request: GenerationRequest) -> Delta:
    return [delta async for delta in engine.generate(request, stream=False)][-1]


class Reference:
    """Answers alone, through transformers' own generate."""

    def __init__(self, base: str, folders: dict[str, Path], renderer: ChatRenderer) -> None:
        config = ModelConfig(base=base)
        self._models: dict[str | None, Any] = {None: load_base(config, "cpu")}
        self._models |= {name: add_adapter(load_base(config, "cpu"), name, folder) for name, folder in folders.items()}
        self._renderer = renderer

    def answer(self, adapter: str | None, messages: list[dict[str, str]], max_tokens: int) -> str:
        ids = torch.tensor(self._renderer.prompt_ids(messages).astype("int64"))[None]
        out = self._models[adapter].generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(self._renderer.stop_ids),
        )
        return self._renderer.decode(out[0, ids.shape[1] :].tolist())


def test_answers_in_any_company_are_those_given_alone(
    engine: TransformersEngine, pocket_base: str, adapter_folders: dict[str, Path], renderer: ChatRenderer
) -> None:
    """60 requests of mixed adapters and lengths through 6 slots and room for 2 adapters: 100 % equal, greedy, fp32."""
    reference = Reference(pocket_base, adapter_folders, renderer)
    asked = [(n, (None, "ada", "bob", "cyn")[n % 4], 5 + n % 19) for n in range(60)]

    async def ask_all() -> list[Delta]:
        requests = [GenerationRequest(question(n), ref(name), limit, temperature=0) for n, name, limit in asked]
        return await asyncio.gather(*(whole(engine, request) for request in requests))

    answers = asyncio.run(ask_all())
    expected = [reference.answer(name, question(n), limit) for n, name, limit in asked]
    assert [a.text for a in answers] == expected
    assert len(set(expected)) > 40  # the adapters do answer differently
    assert engine.stats() == {"running": 0, "waiting": 0, "adapters": 2, "finished": 60, "cancelled": 0}


def test_stream_adds_up_to_the_whole_answer(engine: TransformersEngine) -> None:
    request = GenerationRequest(question(3), ref("ada"), 24, temperature=0)

    async def both() -> tuple[list[Delta], Delta]:
        return [delta async for delta in engine.generate(request, stream=True)], await whole(engine, request)

    pieces, answer = asyncio.run(both())
    assert len(pieces) > 3
    assert "".join(piece.text for piece in pieces) == answer.text
    assert (pieces[-1].finish_reason, pieces[-1].completion_tokens) == (answer.finish_reason, answer.completion_tokens)


def test_stop_string_ends_before_it(engine: TransformersEngine) -> None:
    full = asyncio.run(whole(engine, GenerationRequest(question(5), None, 40, temperature=0))).text
    stop = full[6:9]
    cut = asyncio.run(whole(engine, GenerationRequest(question(5), None, 40, temperature=0, stop=(stop,))))
    assert cut.text == full[: full.index(stop)] and cut.finish_reason == "stop"


def test_seed_repeats_a_sample_and_seeds_differ(engine: TransformersEngine) -> None:
    def sampled(seed: int) -> str:
        request = GenerationRequest(question(7), None, 24, temperature=1.5, top_p=0.9, seed=seed)
        return asyncio.run(whole(engine, request)).text

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_closing_the_stream_frees_the_place(engine: TransformersEngine) -> None:
    async def leave_early() -> None:
        stream = engine.generate(GenerationRequest(question(1), ref("bob"), 130, temperature=0), stream=True)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        for _ in range(200):
            if engine.stats()["cancelled"]:
                return
            await asyncio.sleep(0.01)

    asyncio.run(leave_early())
    assert engine.stats()["cancelled"] == 1 and engine.stats()["running"] == 0


def test_what_cannot_be_answered_is_refused_and_harms_nobody(engine: TransformersEngine) -> None:
    async def run() -> None:
        long = [{"role": "user", "content": "red hats " * 200}]
        with pytest.raises(RequestError, match="context holds 160"):
            await whole(engine, GenerationRequest(long, None, None, temperature=0))
        with pytest.raises(RequestError, match="max_tokens=200"):
            await whole(engine, GenerationRequest(question(1), None, 200, temperature=0))
        with pytest.raises(UserError, match="gone"):
            await whole(engine, GenerationRequest(question(1), ref("eve"), 5, temperature=0))
        assert (await whole(engine, GenerationRequest(question(1), ref("ada"), 5, temperature=0))).completion_tokens

    asyncio.run(run())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
