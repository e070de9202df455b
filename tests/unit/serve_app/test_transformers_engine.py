"""The engine against plain `generate`, for single requests and for any mix."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from pipelines.chat import ChatRenderer
from pipelines.config.schema import ModelConfig, ServeConfig
from pipelines.core.errors import UserError
from pipelines.model.base import load_base
from serve_app.engines.protocol import (
    AdapterRef,
    Delta,
    EngineFailure,
    GenerationRequest,
    RequestError,
)
from serve_app.engines.transformers.engine import TransformersEngine
from serve_app.engines.transformers.renderers import Renderers

TEXT = "the old captain sold 14 maps to Mira from Oslo and 3 boats, who bought them; café 😀"
WORDS = TEXT.split()
MakeEngine = Callable[..., TransformersEngine]


@pytest.fixture
def make_engine(
    pocket_base: str, adapter_folders: dict[str, Path], renderers: Renderers
) -> Iterator[MakeEngine]:
    """Makes engines over the pocket base, each on one core; an adapter's key is its name.

    All engines are closed after the test.
    """
    engines: list[TransformersEngine] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(
        fetch: Callable[[AdapterRef], Path] | None = None, **config: Any
    ) -> TransformersEngine:
        model = load_base(ModelConfig(base=pocket_base, dtype="fp32"), "cpu")
        fetch = fetch or (lambda adapter: adapter_folders[adapter.key])
        engines.append(TransformersEngine(model, renderers, ServeConfig(**config), fetch))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
    torch.set_num_threads(threads)


def chat(text: str, adapter: str | None = None, **options: Any) -> GenerationRequest:
    ref = AdapterRef(adapter, f"{adapter}@{'0' * 12}") if adapter else None
    options = {"temperature": 0.0, "max_tokens": 12, **options}
    return GenerationRequest([{"role": "user", "content": text}], ref, **options)


async def answer(
    engine: TransformersEngine, request: GenerationRequest, stream: bool = False
) -> list[Delta]:
    return [delta async for delta in engine.generate(request, stream)]


def ask(
    engine: TransformersEngine, *requests: GenerationRequest, stream: bool = False
) -> list[Delta]:
    """Each request's answer as one delta; all requests run at once."""

    async def all_answers() -> list[list[Delta]]:
        return await asyncio.gather(*(answer(engine, request, stream) for request in requests))

    answers = asyncio.run(asyncio.wait_for(all_answers(), 120))
    return [replace(deltas[-1], text="".join(d.text for d in deltas)) for deltas in answers]


class Reference:
    """Plain transformers and PEFT: `generate` for one prompt and one adapter at a time."""

    def __init__(self, base: str, adapters: dict[str, Path], renderer: ChatRenderer) -> None:
        self._renderer = renderer
        self._models: dict[str | None, torch.nn.Module] = {
            None: load_base(ModelConfig(base=base, dtype="fp32"), "cpu")
        }
        for name, folder in adapters.items():
            fresh = load_base(ModelConfig(base=base, dtype="fp32"), "cpu")
            self._models[name] = PeftModel.from_pretrained(fresh, str(folder)).eval()

    def __call__(self, request: GenerationRequest) -> Delta:
        prompt = torch.tensor([self._renderer.prompt_ids(list(request.messages)).tolist()])
        model = self._models[request.adapter.key if request.adapter else None]
        ids = model.generate(  # type: ignore[operator]
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.max_tokens,
            do_sample=False,
            eos_token_id=list(self._renderer.stop_ids),
            pad_token_id=0,
        )[0, prompt.shape[1] :].tolist()
        ended = ids[-1] in self._renderer.stop_ids
        text = self._renderer.decode(ids[:-1] if ended else ids)
        return Delta(text, "stop" if ended else "length", prompt.shape[1], len(ids))


@pytest.fixture(scope="module")
def reference(
    pocket_base: str, adapter_folders: dict[str, Path], renderer: ChatRenderer
) -> Reference:
    return Reference(pocket_base, adapter_folders, renderer)


def random_requests(
    rng: random.Random, count: int, adapters: Sequence[str | None]
) -> list[GenerationRequest]:
    return [
        chat(
            " ".join(rng.choices(WORDS, k=rng.randint(1, 25))),
            rng.choice(adapters),
            max_tokens=rng.choice((1, 2, 5, 12)),
        )
        for _ in range(count)
    ]


def test_a_greedy_answer_in_any_mix_equals_that_of_generate_alone(
    make_engine: MakeEngine, reference: Reference, adapter_folders: dict[str, Path]
) -> None:
    rng = random.Random(7)
    requests = random_requests(rng, 40, [None, *adapter_folders])
    expected = {id(request): reference(request) for request in requests}
    assert len({e.text for e in expected.values()}) > 30  # else the test compares little
    engine = make_engine(max_batch=5, max_model_tokens=256)
    for _ in range(50):
        mix = rng.sample(requests, rng.randint(2, 10))
        assert ask(engine, *mix) == [expected[id(request)] for request in mix]
    assert engine.stats()["running"] == 0


def test_adapters_answer_differently_and_leave_the_base_unchanged(
    make_engine: MakeEngine, reference: Reference
) -> None:
    engine = make_engine()
    question = "who sold the map to Mira"
    before = ask(engine, chat(question))
    requests = [chat(question, name) for name in ("ada", "bob", "cyn")]
    assert len({delta.text for delta in (*ask(engine, *requests), *before)}) == 4
    assert ask(engine, chat(question)) == before == [reference(chat(question))]


def test_streamed_pieces_add_up_to_the_complete_answer(make_engine: MakeEngine) -> None:
    engine = make_engine()
    request = chat("tell me of the captain", "ada", max_tokens=40)
    deltas = asyncio.run(answer(engine, request, stream=True))
    assert [bool(d.finish_reason) for d in deltas] == [False] * (len(deltas) - 1) + [True]
    assert ask(engine, request, stream=True) == ask(engine, request)
    assert not any("\ufffd" in d.text for d in deltas[:-1])


def test_a_seed_repeats_a_sampled_answer_in_any_batch(make_engine: MakeEngine) -> None:
    engine = make_engine()
    request = chat("the old captain", temperature=1.0, top_p=0.9, seed=5, max_tokens=20)
    alone = ask(engine, request)[0]
    batch = ask(
        engine, chat("a map", "bob"), request, chat("boats", "ada", temperature=0.7), request
    )
    assert batch[1] == batch[3] == alone
    other = ask(
        engine, *(chat("the old captain", temperature=1.0, seed=s, max_tokens=20) for s in range(4))
    )
    assert len({delta.text for delta in other}) > 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-6])
def test_a_temperature_near_zero_is_greedy(make_engine: MakeEngine, temperature: float) -> None:
    engine = make_engine()
    assert ask(engine, chat("the old captain", temperature=temperature)) == ask(
        engine, chat("the old captain")
    )


def test_a_stop_string_ends_the_answer_before_it(make_engine: MakeEngine) -> None:
    engine = make_engine()
    full = ask(engine, chat("the old captain", "ada", max_tokens=40))[0]
    stop = full.text[8:11]
    for stream in (False, True):
        cut = ask(
            engine, chat("the old captain", "ada", max_tokens=40, stop=(stop,)), stream=stream
        )[0]
        assert cut.text == full.text[: full.text.index(stop)] and cut.finish_reason == "stop"
        assert cut.completion_tokens < full.completion_tokens


def test_a_prompt_beyond_the_context_is_refused_with_its_length(make_engine: MakeEngine) -> None:
    engine = make_engine(max_model_tokens=32)
    with pytest.raises(RequestError, match="tokens, but this model's context holds 32"):
        ask(engine, chat("word " * 100, max_tokens=None))
    with pytest.raises(RequestError, match="max_tokens=40"):
        ask(engine, chat("hi", max_tokens=40))
    assert ask(engine, chat("hi", max_tokens=None))[0].completion_tokens <= 32


def test_a_cancelled_request_frees_its_slot(make_engine: MakeEngine) -> None:
    engine = make_engine(max_batch=1, max_model_tokens=1024)

    async def leave_then_ask() -> Delta:
        leaving = engine.generate(chat("the", temperature=2.0, max_tokens=900), stream=True)
        await anext(leaving)
        await leaving.aclose()  # type: ignore[attr-defined]
        return (await answer(engine, chat("hi", max_tokens=2)))[-1]

    assert asyncio.run(asyncio.wait_for(leave_then_ask(), 20)).finish_reason
    stats = engine.stats()
    assert (stats["cancelled"], stats["finished"], stats["running"]) == (1, 1, 0)


def test_no_more_adapters_stay_than_allowed_and_answers_stay_correct(
    make_engine: MakeEngine, reference: Reference
) -> None:
    rng = random.Random(3)
    engine = make_engine(max_batch=4, max_adapters=1)
    for _ in range(6):
        mix = random_requests(rng, 6, ["ada", "bob", "cyn", None])
        assert ask(engine, *mix) == [reference(request) for request in mix]
    assert engine.stats()["adapters"] == 1


def test_an_adapter_that_cannot_be_loaded_fails_only_its_own_request(
    make_engine: MakeEngine, adapter_folders: dict[str, Path]
) -> None:
    def fetch(adapter: AdapterRef) -> Path:
        if adapter.key == "gone":
            raise UserError("gone from the store")
        return adapter_folders[adapter.key]

    engine = make_engine(fetch, max_adapters=1)
    before = ask(engine, chat("hi", "ada"))
    with pytest.raises(UserError, match="gone from the store"):
        ask(engine, chat("hi", "gone"))
    assert engine.stats()["adapters"] == 1
    assert ask(engine, chat("hi", "ada")) == before


def test_an_adapter_of_another_shape_fails_only_its_own_request_each_time(
    make_engine: MakeEngine,
    adapter_folders: dict[str, Path],
    misfit_folder: Path,
    reference: Reference,
) -> None:
    engine = make_engine(lambda adapter: {**adapter_folders, "misfit": misfit_folder}[adapter.key])
    for _ in range(2):
        with pytest.raises(UserError, match="does not fit the base"):
            ask(engine, chat("hi", "misfit"))
        assert ask(engine, chat("hi"), chat("hi", "bob")) == [
            reference(chat("hi")),
            reference(chat("hi", "bob")),
        ]


def test_weights_that_overflow_fail_only_their_own_request(
    make_engine: MakeEngine,
    adapter_folders: dict[str, Path],
    overflowing_folder: Path,
    reference: Reference,
) -> None:
    engine = make_engine(
        lambda adapter: {**adapter_folders, "huge": overflowing_folder}[adapter.key]
    )

    async def both() -> tuple[list[Delta] | BaseException, list[Delta] | BaseException]:
        bad = answer(engine, chat("hi", "huge", temperature=1.0))
        return await asyncio.gather(bad, answer(engine, chat("hi", "ada")), return_exceptions=True)

    bad, good = asyncio.run(asyncio.wait_for(both(), 60))
    assert isinstance(bad, EngineFailure) and "not finite" in str(bad)
    assert good == [reference(chat("hi", "ada"))]
    mix = random_requests(random.Random(1), 8, ["ada", None])  # also in the slot that had the NaN
    assert ask(engine, *mix) == [reference(request) for request in mix]


def test_a_closed_engine_refuses_instead_of_waiting(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.close()
    assert not engine.alive
    with pytest.raises(EngineFailure):
        ask(engine, chat("hi"))
