"""Trial of serving: a tiny copy with adapters answers in a batch as each request does alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bases.inference_trial import greedy_alone, reference_model
from jobs.bases.tiny_samples import samples
from pipelines.config.schema import ModelConfig, ServeConfig
from pipelines.model.base import load_base
from pipelines.model.support_table import YES, Cell
from serve_app.engines.protocol import AdapterRef, Delta, GenerationRequest

MAX_TOKENS = 64
_NEW_TOKENS = 8
_CHARACTERS = 0x4E00  # the code point that stands for token 0 in answers


class _IdRenderer:
    """A renderer whose prompts are token ids and whose texts have a character per token."""

    stop_ids: tuple[int, ...] = ()

    def prompt_ids(self, messages: Sequence[Any], *_: Any, **__: Any) -> np.ndarray:
        return np.array([int(each) for each in messages[0]["content"].split()], np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(_CHARACTERS + int(each)) for each in ids)


class _IdRenderers:
    """The same renderer for the base and for each adapter."""

    async def get(self, _: AdapterRef | None) -> _IdRenderer:
        return _IdRenderer()


def try_serving(base: Path, adapters: Sequence[Path]) -> Cell:
    """Serve a copy with two adapters: prompts of several lengths, with and without an adapter."""
    from serve_app.engines.transformers.engine import TransformersEngine

    prompts = samples(seed=1)
    names = [None, *range(len(adapters)), None][: len(prompts)]
    engine = TransformersEngine(
        load_base(ModelConfig(base=str(base), dtype="fp32"), "cpu"),
        _IdRenderers(),  # pyright: ignore[reportArgumentType]
        ServeConfig(max_batch=len(prompts), max_model_tokens=MAX_TOKENS),
        lambda adapter: adapters[int(adapter.key)],
    )
    try:
        answers = asyncio.run(_answers(engine, prompts, names))
    finally:
        engine.close()
    references = {
        name: reference_model(base, None if name is None else adapters[name]) for name in set(names)
    }
    for answer, prompt, name in zip(answers, prompts, names, strict=True):
        ids = [ord(character) - _CHARACTERS for character in answer]
        if ids != (alone := greedy_alone(references[name], prompt, _NEW_TOKENS)):
            return Cell("silent", f"the engine answers {ids}, transformers {alone}")
    return YES


async def _answers(
    engine: Any, prompts: Sequence[np.ndarray], names: Sequence[int | None]
) -> list[str]:
    """The complete answers to prompts that are asked at once."""

    async def ask(prompt: np.ndarray, name: int | None) -> str:
        content = " ".join(map(str, prompt.tolist()))
        adapter = None if name is None else AdapterRef(str(name), f"{name}@{'0' * 12}")
        request = GenerationRequest(
            [{"role": "user", "content": content}],
            adapter,
            temperature=0.0,
            max_tokens=_NEW_TOKENS,
        )
        deltas: list[Delta] = [delta async for delta in engine.generate(request, stream=False)]
        return "".join(delta.text for delta in deltas)

    asked = (ask(prompt, name) for prompt, name in zip(prompts, names, strict=True))
    answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [str(answer) for answer in answers]
