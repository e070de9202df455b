"""Continuous batching with transformers, on CPU or any GPU, with different adapters in one batch.

One thread owns the model. Each turn of its loop admits waiting requests into free slots (prompts
are prefilled together), then decodes one token for all rows. Rows in use are always the first n
slots: when a row ends, the last one takes its slot, so that no step computes empty slots. A row's
numbers depend on its neighbours only by floating-point rounding, and in fp32 its greedy answer is
the one that it gets alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import torch

from pipelines.chat import ChatRenderer, TemplateError
from pipelines.config.schema import ServeConfig
from pipelines.core.errors import UserError
from pipelines.model.multi_lora import MultiLora
from pipelines.model.supported import published_values, refuse, serve_refusal
from serve_app.engines.protocol import (
    AdapterRef,
    Delta,
    EngineFailure,
    FinishReason,
    GenerationRequest,
    RequestError,
)
from serve_app.engines.transformers.adapters import AdapterCache
from serve_app.engines.transformers.batch_forward import last_logits, pad_prompts
from serve_app.engines.transformers.batch_row import Answer, Row, concatenate
from serve_app.engines.transformers.cache_check import check_cache
from serve_app.engines.transformers.renderers import Renderers
from serve_app.engines.transformers.sampling import make_generator, sample
from serve_app.engines.transformers.slots import SlotCache
from serve_app.engines.transformers.text import TextStream


class TransformersEngine:
    """Serves one loaded model.

    At most `max_batch` rows run at a time, each with at most `max_model_tokens` tokens including
    its prompt. `fetch` returns the local folder of an adapter that is requested the first time.
    """

    def __init__(
        self,
        model: Any,
        renderers: Renderers,
        config: ServeConfig,
        fetch: Callable[[AdapterRef], Path],
    ) -> None:
        self._model, self._renderers, self._fetch = model, renderers, fetch
        self._max_batch = config.max_batch
        base = published_values(model.config)
        self._max_tokens = min(config.max_model_tokens, base.max_tokens or config.max_model_tokens)
        refuse(base, serve_refusal(base, self._max_tokens))
        self._cache = SlotCache(config.max_batch, self._max_tokens)
        check_cache(model, self._cache)
        self._multi_lora = MultiLora(model)
        self._adapters = AdapterCache(config.max_adapters, self._load, self._multi_lora.remove)
        self._waiting: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._rows: list[Row] = []
        self._counts: Counter[str] = Counter()
        self._closing = self._ended = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # -- for requests, on the event loop -----------------------------------------------------

    async def generate(self, request: GenerationRequest, stream: bool) -> AsyncIterator[Delta]:
        """See `serve_app.engines.protocol.Engine`."""
        loop, answers = asyncio.get_running_loop(), asyncio.Queue[Answer]()
        renderer = await self._renderers.get(request.adapter)

        def answered(answer: Answer) -> None:
            loop.call_soon_threadsafe(answers.put_nowait, answer)

        row = self._admit(request, renderer, stream, answered)
        self._waiting.put(row)
        if self._ended:
            raise EngineFailure("the engine has stopped")
        try:
            while True:
                answer = await answers.get()
                # A slow reader gets the pieces that came meanwhile as one.
                while isinstance(answer, Delta) and not answers.empty():
                    answer = concatenate(answer, answers.get_nowait())
                if isinstance(answer, Exception):
                    raise answer
                yield answer
                if answer.finish_reason:
                    return
        finally:
            row.cancelled.set()

    def stats(self) -> dict[str, int]:
        """See `serve_app.engines.protocol.Engine`."""
        current = {
            "running": sum(row.limit > 0 for row in self._rows),
            "waiting": self._waiting.qsize(),
            "adapters": len(self._adapters),
        }
        return current | {name: self._counts[name] for name in ("finished", "cancelled", "failed")}

    @property
    def alive(self) -> bool:
        """False once the engine's thread has died; every running request got the error."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop the thread. Requests that run or wait get an EngineFailure."""
        self._closing = True
        self._waiting.put(None)
        self._thread.join()

    def _admit(
        self,
        request: GenerationRequest,
        renderer: ChatRenderer,
        stream: bool,
        answer: Callable[[Answer], object],
    ) -> Row:
        try:
            prompt = renderer.prompt_ids(list(request.messages)).tolist()
        except TemplateError as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}", "messages"
            ) from error
        room = self._max_tokens - len(prompt)
        if room < 1 or (request.max_tokens or 1) > room:
            asked = f" and max_tokens={request.max_tokens}" if request.max_tokens else ""
            raise RequestError(
                f"the messages have {len(prompt)} tokens{asked}, but this model's context holds "
                f"{self._max_tokens}; shorten the messages or lower max_tokens",
                "messages",
            )
        generator = make_generator(request, self._model.device)
        text = TextStream(renderer.decode, request.stop, at_once=not stream)
        limit = request.max_tokens or room
        return Row(request, prompt, renderer.stop_ids, limit, stream, answer, text, generator)

    # -- the engine's thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._closing:
                    self._join_waiting()
                    if self._rows:
                        self._decode()
        finally:  # also after an error, which the log and, through `alive`, the health check show
            self._ended = True
            failure = EngineFailure("the engine has stopped")
            with contextlib.suppress(queue.Empty):
                while True:
                    self._rows += filter(None, [self._waiting.get_nowait()])
            for row in self._rows:
                row.answer(failure)

    def _join_waiting(self) -> None:
        """Prefill waiting requests into free slots; sleep while there is nothing to do."""
        new_rows: list[Row] = []
        while len(self._rows) + len(new_rows) < self._max_batch:
            try:
                row = self._waiting.get(block=not (self._rows or new_rows))
            except queue.Empty:
                break
            if row is None:
                break
            if row.cancelled.is_set():
                self._counts["cancelled"] += 1
            elif self._acquire(row):
                new_rows.append(row)
        if new_rows:
            self._prefill(new_rows)

    def _acquire(self, row: Row) -> bool:
        """Pin the row's adapter; an adapter that cannot be loaded fails this row only."""
        if row.request.adapter:
            try:
                self._adapters.acquire(row.request.adapter)
            except (ValueError, RuntimeError, OSError) as error:  # ValueError: UserError too
                self._counts["failed"] += 1
                row.answer(
                    error
                    if isinstance(error, UserError)
                    else EngineFailure(f"{row.adapter}: {error}")
                )
                return False
        return True

    def _load(self, adapter: AdapterRef) -> None:
        self._multi_lora.add(adapter.key, self._fetch(adapter))

    def _prefill(self, new_rows: list[Row]) -> None:
        """Compute the prompts of new rows together and take their first tokens."""
        first = len(self._rows)
        self._rows += new_rows
        ids, positions = pad_prompts([row.prompt for row in new_rows])
        self._take_tokens(new_rows, self._forward(ids, positions, first, new_rows))

    def _decode(self) -> None:
        ids, positions = [[row.last] for row in self._rows], [[row.position] for row in self._rows]
        self._take_tokens(list(self._rows), self._forward(ids, positions, 0, self._rows))

    def _forward(
        self, ids: list[list[int]], positions: list[list[int]], first: int, rows: list[Row]
    ) -> torch.Tensor:
        """Logits [n, V] (fp32) of the last column, each row with its adapter."""
        self._multi_lora.use([row.adapter for row in rows])
        return last_logits(self._model, self._cache, ids, positions, first)

    def _take_tokens(self, rows: list[Row], logits: torch.Tensor) -> None:
        highest, greedy = (values.tolist() for values in logits.max(-1))
        for i, row in enumerate(rows):
            if not math.isfinite(highest[i]):
                self._fail(row)
                continue
            row.last = (
                greedy[i]
                if row.generator is None
                else sample(logits[i], row.request, row.generator)
            )
            self._advance(row)
        self._rows = self._without_ended()

    def _advance(self, row: Row) -> None:
        """Count the row's new token and answer with the text that it completes."""
        ends = row.last in row.stop_ids
        row.num_tokens += 1
        piece = "" if ends else row.text.push(row.last)
        if row.cancelled.is_set():
            self._counts["cancelled"] += 1
            row.limit = 0
        elif ends or row.text.stopped:
            self._finish(row, piece + row.text.finish(), "stop")
        elif row.num_tokens >= row.limit:
            self._finish(row, piece + row.text.finish(), "length")
        elif row.stream and piece:
            row.answer(Delta(piece))
        else:
            row.pieces.append(piece)

    def _finish(self, row: Row, piece: str, reason: FinishReason) -> None:
        row.limit = 0
        self._counts["finished"] += 1
        row.answer(Delta("".join(row.pieces) + piece, reason, len(row.prompt), row.num_tokens))

    def _fail(self, row: Row) -> None:
        """End a row whose logits are not finite.

        Its slot is zeroed: through a mask a NaN still reaches the slot's next row (0 x NaN = NaN).
        """
        row.limit = 0
        self._counts["failed"] += 1
        self._cache.wipe(self._rows.index(row))
        row.answer(EngineFailure(f"{row.adapter or 'the base'}: its numbers are not finite"))

    def _without_ended(self) -> list[Row]:
        """The running rows, packed into the first slots: the last row takes an ended row's slot."""
        rows = list(self._rows)
        slot = 0
        while slot < len(rows):
            if rows[slot].limit:
                slot += 1
                continue
            if rows[slot].adapter:
                self._adapters.release(rows[slot].adapter or "")
            last = rows.pop()
            if slot < len(rows):
                self._cache.move(len(rows), slot)
                rows[slot] = last
        return rows
