"""The work of one task: a chunk's rows become tokens and loss weights as Arrow tables. Knows nothing of Ray.

N: lines of a table, T: tokens of all of them
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.chat import ROW_FAULTS, ChatRenderer, RenderedBatch, TemplateError
from pipelines.config.schema import DataConfig
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError
from pipelines.data.convert.decontamination import Benchmarks
from pipelines.data.convert.dedup import content_id, prompt_keys, share_of, signature, text_of
from pipelines.data.convert.quality_filters import Rules
from pipelines.data.convert.row_formats import RowError, to_conversation
from pipelines.data.convert.truncation import shortened
from pipelines.data.read.chunks import Chunk
from pipelines.data.read.raw_row import RawRow, as_text, printable, why
from pipelines.data.read.rows import read_chunk

BATCH_ROWS = 1024
# What became of a row. SHORTENED: its pieces follow as lines of their own, numbered from 1 in `piece`.
TRAIN, HELDOUT, REJECTED, FILTERED, SKIPPED, TOO_LONG, SHORTENED, LEAKED = range(8)
_STOPPED = -1  # no row: why the stage cannot go on
SCHEMA = pa.schema(
    {
        "chunk": pa.int32(),
        "row": pa.int64(),  # number in its chunk
        "piece": pa.int32(),
        "fate": pa.int8(),
        "reason": pa.string(),  # of a row that is not kept as it is, with its text
        "text": pa.string(),
        "sample_id": pa.binary(16),
        "prompt_key": pa.int64(),
        "earlier_keys": pa.list_(pa.int64()),  # prompt keys of the answers before the last
        "copies": pa.int32(),
        "signature": pa.binary(),
        "turns": pa.int32(),  # the masks' counts, see chat.masks
        "without_stop": pa.int32(),
        "others": pa.int32(),
        "wrongly": pa.int32(),
        "prefix_matches": pa.bool_(),
        "beside_calls": pa.int32(),  # turns with text and tool calls, and those of them whose text is not rendered
        "unshown": pa.int32(),
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
    fate: int
    keys: list[int]
    copies: int
    piece: int = 0


class ChunkTokenizer:
    """Reads, converts, renders and tokenizes chunks; one instance serves many chunks of one recipe."""

    def __init__(
        self, renderer: ChatRenderer, config: DataConfig, benchmarks: Benchmarks | None = None
    ) -> None:
        self._renderer = renderer
        self._config = config
        self._benchmarks = benchmarks or Benchmarks()
        self._rules = Rules(config.keep)

    def tables(self, number: int, chunk: Chunk) -> Iterator[pa.Table]:
        """Tables of SCHEMA for the chunk: a line for each row, kept or not, and one for each piece of a shortened row."""
        rows = read_chunk(chunk)
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            yield self._table(number, chunk, batch)

    def tables_or_stop(self, number: int, chunk: Chunk) -> Iterator[pa.Table]:
        """As `tables`, a UserError as a last table for `unless_stopped`: raised in a task, Ray would write its traceback and
        lines of its own.
        """
        try:
            yield from self.tables(number, chunk)
        except UserError as error:
            yield pa.Table.from_pylist(
                [{"chunk": number, "fate": _STOPPED, "reason": str(error)}], SCHEMA
            )

    def _table(self, number: int, chunk: Chunk, rows: Sequence[RawRow]) -> pa.Table:
        lines: list[dict[str, Any]] = []
        samples: list[_Sample] = []
        for raw in rows:
            try:
                sample = self._sample(chunk, raw)
            except RowError as error:
                lines.append(
                    _lost(raw.number, REJECTED, str(error), raw.text or as_text(raw.value))
                )
                continue
            except ROW_FAULTS as error:
                reason = f"a field is not of the kind that its format asks for ({why(error)})"
                lines.append(_lost(raw.number, REJECTED, reason, raw.text or as_text(raw.value)))
                continue
            lost = self._unwanted(sample)
            if lost:
                lines.append(lost)
            else:
                samples.append(sample)
        table, pieces = self._rendered(number, samples, lines)
        if pieces:
            more, _ = self._rendered(number, pieces, [])
            table = pa.concat_tables([table, more])
        return (
            table.sort_by([("row", "ascending"), ("piece", "ascending")])
            if lines or pieces
            else table
        )

    def _sample(self, chunk: Chunk, raw: RawRow) -> _Sample:
        if raw.error:
            raise RowError(raw.error)
        source, config = self._config.sources[chunk.source], self._config
        conversation = to_conversation(raw.value, source.format, source.columns)
        if config.train_on == "last":
            conversation = _last_only(conversation)
        keys = prompt_keys(conversation)
        opening = keys[_first_asked(conversation)]
        if source.split == "auto":
            heldout = (
                config.heldout_share > 0
                and share_of(opening, config.seed, "split") < config.heldout_share
            )
        else:
            heldout = source.split == "heldout"
        copies, rest = divmod(source.weight, 1)
        if rest:  # by all that the row says: of the answers to one question some are kept
            copies += (
                share_of(int.from_bytes(content_id(conversation), "little"), config.seed, "weight")
                < rest
            )
        return _Sample(
            raw.number,
            conversation,
            HELDOUT if heldout else TRAIN,
            keys,
            1 if heldout else int(copies),
        )

    def _unwanted(self, sample: _Sample) -> dict[str, Any] | None:
        """The line of a row that a rule, a weight or a benchmark keeps out."""
        broken = self._rules.broken_by(sample.conversation)
        if broken:
            return _lost(
                sample.row,
                FILTERED,
                f"data.keep: {broken}",
                as_text(sample.conversation.messages()),
            )
        if not sample.copies:
            return _lost(sample.row, SKIPPED, "left out by its source's weight", "")
        guarded = sample.fate == TRAIN and self._config.leakage != "allow"
        if guarded and self._benchmarks.hold(sample.conversation):
            return _lost(
                sample.row,
                LEAKED,
                "its text is in a benchmark",
                as_text(sample.conversation.messages()),
            )
        return None

    def _pieces(self, sample: _Sample) -> list[_Sample]:
        found = shortened(
            sample.conversation, self._renderer, self._config.row_tokens, self._config.too_long
        )
        return [replace(sample, conversation=one, piece=i) for i, one in enumerate(found, 1)]

    def _rendered(
        self, number: int, samples: list[_Sample], lines: list[dict[str, Any]]
    ) -> tuple[pa.Table, list[_Sample]]:
        """The table of the samples behind the lines that are given, and the pieces of those that were too long."""
        talks = [sample.conversation for sample in samples]
        rendered = self._renderer.render_batch(talks)
        first = next((s for i, s in enumerate(samples) if i not in rendered.errors), None)
        if self._renderer.fast and first:
            self._renderer.check_fast(first.conversation)
        lengths, trained = np.diff(rendered.offsets), _trained(rendered)
        kept = (trained > 0) & (lengths <= self._config.row_tokens)
        rows = np.flatnonzero(kept).tolist()
        matches = dict(
            zip(rows, self._renderer.begin_with_prompts(talks, rendered, rows), strict=True)
        )
        pieces, lines = [], list(lines)
        for i, sample in enumerate(samples):
            if i in rendered.errors or not trained[i]:
                reason = rendered.errors.get(i, "no token of it is trained")
                lines.append(
                    _lost(sample.row, REJECTED, reason, as_text(sample.conversation.messages()))
                )
            elif lengths[i] > self._config.row_tokens:
                text = f"{lengths[i]} tokens, a pack has {self._config.row_tokens}"
                mended = self._pieces(sample)
                fate, row = (
                    SHORTENED if mended else TOO_LONG,
                    as_text(sample.conversation.messages()),
                )
                lines.append(_lost(sample.row, fate, text, row))
                pieces += mended
            else:
                lines.append(self._kept_line(sample, rendered, i) | {"prefix_matches": matches[i]})
        return _assemble(number, lines, rendered, kept), pieces

    def _kept_line(self, sample: _Sample, rendered: RenderedBatch, i: int) -> dict[str, Any]:
        line: dict[str, Any] = {
            "row": sample.row,
            "piece": sample.piece,
            "fate": sample.fate,
            "copies": sample.copies,
        }
        line |= {"sample_id": content_id(sample.conversation), "prompt_key": sample.keys[-1]}
        line |= {
            name: getattr(rendered.masks, name)[i]
            for name in ("turns", "without_stop", "others", "wrongly")
        }
        line["beside_calls"] = sum(map(_speaks_beside_calls, sample.conversation.turns))
        line["unshown"] = 0 if self._renderer.shows_text_beside_calls else line["beside_calls"]
        if len(sample.keys) > 1:
            line["earlier_keys"] = sample.keys[:-1]
        if self._config.near_duplicates is not None:
            line["signature"] = signature(text_of(sample.conversation))
        if sample.fate == HELDOUT:
            line |= self._prompt(sample)
        return line

    def _prompt(self, sample: _Sample) -> dict[str, Any]:
        """What an evaluation needs of a held-out row."""
        messages = sample.conversation.messages()
        last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
        before = messages[:last]
        try:
            prompt_ids = self._renderer.prompt_ids(before, sample.conversation.tools)
        except TemplateError:  # nothing is before the first answer: there is no prompt to answer
            return {}
        prompt = "\n\n".join(
            m["content"] if len(before) == 1 else f"{m['role']}: {m['content']}" for m in before
        )
        found: dict[str, Any] = {
            "prompt_ids": prompt_ids,
            "reference": messages[last]["content"],
            "prompt": prompt,
        }
        return found | {"messages": json.dumps(before, ensure_ascii=False)}


def unless_stopped(table: pa.Table) -> pa.Table:
    """The table; raises the UserError that it holds instead of rows, if it does."""
    found = np.flatnonzero(table["fate"].to_numpy() == _STOPPED)
    if len(found):
        raise UserError(table["reason"][int(found[0])].as_py())
    return table


def _first_asked(conversation: Conversation) -> int:
    """Which of its answers is the first that a user asked for: conversations that open alike are held out together, so
    none can go on in training from where a held-out one ends.
    """
    roles = [turn.role for turn in conversation.turns]
    return (
        roles[: roles.index("user")].count("assistant") if "user" in roles[: _last(roles)] else -1
    )


def _last(roles: Sequence[str]) -> int:
    return max((i for i, role in enumerate(roles) if role == "assistant"), default=0)


def _last_only(conversation: Conversation) -> Conversation:
    last = _last([turn.role for turn in conversation.turns])
    turns = tuple(
        replace(t, train=False) if t.role == "assistant" and i != last else t
        for i, t in enumerate(conversation.turns)
    )
    return replace(conversation, turns=turns)


def _speaks_beside_calls(turn: Turn) -> bool:
    return bool(turn.tool_calls) and bool(turn.content.rpartition("</think>")[2].strip())


def _lost(row: int, fate: int, reason: str, text: str) -> dict[str, Any]:
    return {"row": row, "piece": 0, "fate": fate, "reason": printable(reason), "text": text}


def _trained(rendered: RenderedBatch) -> np.ndarray:
    """Number of trained tokens of each conversation."""
    return np.diff(np.searchsorted(np.flatnonzero(rendered.weights), rendered.offsets))


def _assemble(
    chunk: int, lines: list[dict[str, Any]], rendered: RenderedBatch, kept: np.ndarray
) -> pa.Table:
    """The lines as a table; the rendered conversations belong to the last lines, in order, and only `kept` ones stay."""
    lengths = np.diff(rendered.offsets)
    tokens = slice(None) if kept.all() else np.repeat(kept, lengths)
    before = np.zeros(len(lines) - len(kept), np.int64)
    offsets = pa.array(np.concatenate(([0], np.cumsum(np.concatenate((before, lengths * kept))))))
    columns: dict[str, Any] = {
        "chunk": pa.array(np.full(len(lines), chunk, np.int32)),
        "input_ids": pa.LargeListArray.from_arrays(offsets, pa.array(rendered.ids[tokens])),
        "loss_weights": pa.LargeListArray.from_arrays(offsets, pa.array(rendered.weights[tokens])),
    }
    for field in SCHEMA:
        if field.name not in columns:
            columns[field.name] = pa.array([line.get(field.name) for line in lines], field.type)
    return pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)
