"""The work of one task: a chunk's rows become tokens and loss weights as one Arrow table. Knows nothing of Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.chat import ChatRenderer, RenderedBatch, TemplateError
from pipelines.contracts import Conversation
from pipelines.data.formats import RowError, to_conversation
from pipelines.data.sources import Chunk, RawRow, read_chunk
from pipelines.recipe import DataConfig

BATCH_ROWS = 1024
TRAIN, HELDOUT, REJECTED, TOO_LONG = range(4)
SCHEMA = pa.schema(
    {
        "chunk": pa.int64(),
        "row": pa.int64(),  # number in its chunk
        "fate": pa.int8(),
        "reason": pa.string(),  # of a rejected row, with its text
        "text": pa.string(),
        "sample_id": pa.string(),
        "input_ids": pa.large_list(pa.int32()),
        "loss_weights": pa.large_list(pa.float32()),
        "prompt_ids": pa.large_list(pa.int32()),  # of a held-out row, with what follows
        "reference": pa.string(),
        "prompt": pa.string(),
        "messages": pa.string(),
    }
)


@dataclass
class _Sample:
    row: int
    conversation: Conversation
    sample_id: str
    fate: int


class ChunkTokenizer:
    """Reads, converts, renders and tokenizes chunks; one instance serves many chunks of one recipe."""

    def __init__(self, renderer: ChatRenderer, config: DataConfig) -> None:
        self._renderer = renderer
        self._config = config

    def tables(self, number: int, chunk: Chunk) -> Iterator[pa.Table]:
        """One table for every `BATCH_ROWS` rows of the chunk, a line of it for each row, rejected ones included."""
        batch: list[RawRow] = []
        for raw in read_chunk(chunk):
            batch.append(raw)
            if len(batch) == BATCH_ROWS:
                yield self._table(number, chunk, batch)
                batch = []
        if batch:
            yield self._table(number, chunk, batch)

    def _table(self, number: int, chunk: Chunk, rows: Sequence[RawRow]) -> pa.Table:
        samples: list[_Sample] = []
        lines: list[dict[str, Any]] = []
        for raw in rows:
            try:
                samples.append(self._sample(chunk, raw))
            except RowError as error:
                lines.append(_rejected(raw.number, str(error), raw.text or _as_text(raw.value)))
        rendered = self._renderer.render_batch([s.conversation for s in samples])
        kept = np.ones(len(samples), bool)
        lengths, trained = np.diff(rendered.offsets), _trained_counts(rendered)
        for i, sample in enumerate(samples):
            line: dict[str, Any] = {"row": sample.row, "fate": sample.fate, "sample_id": sample.sample_id}
            if i in rendered.errors or not trained[i]:
                reason = rendered.errors.get(i, "no token of it is trained")
                line = _rejected(sample.row, reason, _as_text(sample.conversation.messages()))
            elif lengths[i] > self._config.row_tokens:
                line["fate"] = TOO_LONG
            elif sample.fate == HELDOUT:
                line |= self._prompt(sample)
            kept[i] = line["fate"] in (TRAIN, HELDOUT)
            lines.append(line)
        return _assemble(number, lines, rendered, kept)

    def _sample(self, chunk: Chunk, raw: RawRow) -> _Sample:
        if raw.error:
            raise RowError(raw.error)
        source = self._config.sources[chunk.source]
        conversation = to_conversation(raw.value, source.format)
        sample_id = content_id(conversation)
        if source.split != "auto":
            return _Sample(raw.number, conversation, sample_id, HELDOUT if source.split == "heldout" else TRAIN)
        share = int(split_id(conversation, self._config.seed)[:8], 16) / (1 << 32)
        return _Sample(raw.number, conversation, sample_id, HELDOUT if share < self._config.heldout_share else TRAIN)

    def _prompt(self, sample: _Sample) -> dict[str, Any]:
        """What an evaluation needs of a held-out row: the prompt of its last answer, and that answer."""
        if sample.fate != HELDOUT:
            return {}
        messages = sample.conversation.messages()
        last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
        before = messages[:last]
        try:
            prompt_ids = self._renderer.prompt_ids(before, sample.conversation.tools)
        except TemplateError:  # nothing is before the first answer: there is no prompt to answer
            return {}
        prompt = "\n\n".join(m["content"] if len(before) == 1 else f"{m['role']}: {m['content']}" for m in before)
        found = {"prompt_ids": prompt_ids, "reference": messages[last]["content"], "prompt": prompt}
        return found | {"messages": json.dumps(before, ensure_ascii=False)}


def content_id(conversation: Conversation) -> str:
    """32 hex digits of a conversation's content, whatever file and place it came from."""
    return _hash([*_parts(conversation, len(conversation.turns)), *map(repr, conversation.tools)])


def split_id(conversation: Conversation, seed: int) -> str:
    """32 hex digits of what precedes the last answer: the same question always lands on the same side of the split."""
    last = max(i for i, turn in enumerate(conversation.turns) if turn.role == "assistant")
    return _hash([str(seed), *_parts(conversation, last)])


def _parts(conversation: Conversation, count: int) -> Iterator[str]:
    for turn in conversation.turns[:count]:
        yield turn.role
        yield turn.content
        if turn.tool_calls or not turn.train or turn.weight != 1.0:
            yield repr((turn.tool_calls, turn.train, turn.weight))


def _hash(parts: Sequence[str]) -> str:
    # The lengths keep ("ab", "c") and ("a", "bc") apart.
    head = ",".join(str(len(part)) for part in parts)
    return hashlib.blake2b("\0".join([head, *parts]).encode(), digest_size=16).hexdigest()


def _rejected(row: int, reason: str, text: str) -> dict[str, Any]:
    return {"row": row, "fate": REJECTED, "reason": reason, "text": text}


def _as_text(value: Any) -> str:
    return json.dumps(value, default=str)[:2000]


def _trained_counts(rendered: RenderedBatch) -> np.ndarray:
    """Trained tokens of each conversation."""
    before = np.concatenate(([0], np.cumsum(rendered.weights > 0)))
    return np.diff(before[rendered.offsets])


def _assemble(chunk: int, lines: list[dict[str, Any]], rendered: RenderedBatch, kept: np.ndarray) -> pa.Table:
    """The lines as a table in row order; the rendered conversations belong to the last lines, in order."""
    lengths = np.diff(rendered.offsets)
    tokens = slice(None) if kept.all() else np.repeat(kept, lengths)
    before = np.zeros(len(lines) - len(kept), np.int64)
    offsets = pa.array(np.concatenate(([0], np.cumsum(np.concatenate((before, lengths * kept))))))
    columns: dict[str, Any] = {
        "chunk": pa.array(np.full(len(lines), chunk)),
        "input_ids": pa.LargeListArray.from_arrays(offsets, pa.array(rendered.ids[tokens])),
        "loss_weights": pa.LargeListArray.from_arrays(offsets, pa.array(rendered.weights[tokens])),
    }
    for field in SCHEMA:
        if field.name not in columns:
            columns[field.name] = pa.array([line.get(field.name) for line in lines], field.type)
    table = pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)
    return table if len(kept) == len(lines) else table.sort_by("row")
