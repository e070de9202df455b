"""The work of one task, without Ray: the rows of a chunk become tokens and loss weights."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.chat import ChatRenderer, RenderedBatch, TemplateError
from pipelines.config.schema import DataConfig
from pipelines.config.schema.data import SourceConfig
from pipelines.core.conversation import Turn
from pipelines.core.errors import UserError
from pipelines.data.convert.content_keys import (
    cluster_id,
    content_id,
    prompt_keys,
    share_of,
    text_of,
)
from pipelines.data.convert.decontamination import Benchmarks
from pipelines.data.convert.dedup import signature
from pipelines.data.convert.quality_filters import QualityFilters
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.source_options import used_options
from pipelines.data.convert.truncation import shorten
from pipelines.data.read.chunks import Chunk
from pipelines.data.read.raw_row import RawRow, as_text
from pipelines.data.read.rows import read_chunk
from pipelines.data.row_facts import RowFacts
from pipelines.data.sample import (
    Sample,
    first_answer_to_user,
    last_answer,
    num_copies,
    only_last_answer,
)
from pipelines.data.source_rows import conversation_of
from pipelines.data.text_pieces import Pieces, text_pieces
from pipelines.data.tokenized_table import (
    FILTERED,
    HELDOUT,
    LEAKED,
    MASK_COUNTS,
    REJECTED,
    SHORTENED,
    SKIPPED,
    TOO_LONG,
    TRAIN,
    build_table,
    chunk_end,
    reject_line,
    stopped_table,
)

BATCH_ROWS = 1024


class ChunkTokenizer:
    """Reads, converts, renders and tokenizes chunks; one instance serves all of a recipe."""

    def __init__(
        self, renderer: ChatRenderer, config: DataConfig, benchmarks: Benchmarks | None = None
    ) -> None:
        self._renderer = renderer
        self._config = config
        self._benchmarks = benchmarks or Benchmarks()
        self._filters = QualityFilters(config.keep)
        self._facts = RowFacts(renderer)

    def tables(self, number: int, chunk: Chunk) -> Iterator[pa.Table]:
        """Tables of SCHEMA: a line for each row of the chunk and each piece of a shortened row.

        A chunk of lines of JSON ends with the table `chunk_end`.
        """
        num_lines = None

        def counted() -> Iterator[RawRow]:
            nonlocal num_lines
            num_lines = yield from read_chunk(chunk)

        rows = counted()
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            yield self._table(number, chunk, batch)
        if num_lines is not None:
            yield chunk_end(number, num_lines)

    def tables_or_stop(self, number: int, chunk: Chunk) -> Iterator[pa.Table]:
        """As `tables`; a UserError becomes a last table for `unless_stopped`."""
        try:
            yield from self.tables(number, chunk)
        except UserError as error:
            yield stopped_table(number, error)

    def _table(self, number: int, chunk: Chunk, rows: Sequence[RawRow]) -> pa.Table:
        source = self._config.sources[chunk.source]
        rejects: list[dict[str, Any]] = []
        samples: list[Sample] = []
        for raw in rows:
            try:
                sample = self._sample(source, raw, chunk.is_table)
            except RowError as error:
                text = raw.text or as_text(raw.value)
                rejects.append(reject_line(raw.number, REJECTED, str(error), text))
                continue
            reject = self._filtered(sample)
            if reject:
                rejects.append(reject)
            else:
                samples.append(sample)
        rendered = self._renderer.render_batch([sample.conversation for sample in samples])
        first = next((s for i, s in enumerate(samples) if i not in rendered.errors), None)
        if self._renderer.fast and first:
            self._renderer.check_fastokens(first.conversation)
        table, shortened = self._sample_table(number, samples, rendered, rejects)
        tables = [table, *(self._sample_table(number, *batch, [])[0] for batch in shortened)]
        if rejects or shortened:
            return pa.concat_tables(tables).sort_by([("row", "ascending"), ("piece", "ascending")])
        return table

    def _sample(self, source: SourceConfig, raw: RawRow, from_table: bool) -> Sample:
        """Convert a row and choose its split. Raises RowError."""
        seed, share = self._config.seed, self._config.heldout_share
        conversation = conversation_of(raw, source, from_table)
        if self._config.train_on == "last":
            conversation = only_last_answer(conversation)
        keys = prompt_keys(conversation)
        if source.split == "auto":
            opening = keys[first_answer_to_user(conversation)]
            heldout = share > 0 and share_of(opening, seed, "split") < share
        else:
            heldout = source.split == "heldout"
        copies = 1 if heldout else num_copies(conversation, source.weight, seed)
        fate = HELDOUT if heldout else TRAIN
        has_options = source.columns or source.roles
        facts = self._facts.of(conversation, used_options(raw.value, source) if has_options else ())
        return Sample(raw.number, conversation, fate, keys, cluster_id(conversation), copies, facts)

    def _filtered(self, sample: Sample) -> dict[str, Any] | None:
        """The reject line of a row that a filter, a weight or a benchmark excludes, or None."""
        failed = self._filters.first_failed(sample.conversation)
        if failed:
            text = as_text(sample.conversation.messages())
            return _left_out(sample, FILTERED, f"data.keep: {failed}", text)
        if not sample.copies:
            return _left_out(sample, SKIPPED, "left out by its source's weight")
        guarded = sample.fate == TRAIN and self._config.leakage != "allow"
        if guarded and self._benchmarks.overlaps(sample.conversation):
            text = as_text(sample.conversation.messages())
            return _left_out(sample, LEAKED, "its text is in a benchmark", text)
        return None

    def _sample_table(
        self,
        number: int,
        samples: Sequence[Sample],
        rendered: RenderedBatch,
        rejects: list[dict[str, Any]],
    ) -> tuple[pa.Table, list[Pieces]]:
        """The table of rejects and samples, and the pieces of samples that were too long."""
        lengths, num_loss_tokens = np.diff(rendered.offsets), _num_loss_tokens(rendered)
        fits = (num_loss_tokens > 0) & (lengths <= self._config.row_tokens)
        counts = zip(*(getattr(rendered.masks, name).tolist() for name in MASK_COUNTS), strict=True)
        mask_counts = [dict(zip(MASK_COUNTS, each, strict=True)) for each in counts]
        lines, pieces, shortened = list(rejects), list[Sample](), list[Pieces]()
        for i, sample in enumerate(samples):
            if fits[i]:
                lines.append(self._sample_line(sample) | mask_counts[i])
                continue
            text = as_text(sample.conversation.messages())
            if i in rendered.errors or not num_loss_tokens[i]:
                reason = rendered.errors.get(i) or _no_loss(mask_counts[i]["num_left_out"])
                lines.append(_left_out(sample, REJECTED, reason, text))
                continue
            reason = f"{lengths[i]} tokens, a pack has {self._config.row_tokens}"
            row_tokens, policy = self._config.row_tokens, self._config.too_long
            if sample.conversation.is_text:
                own = text_pieces(sample, rendered[i], self._renderer, row_tokens, policy)
                shortened += [own] if own[0] else []
                num_pieces = len(own[0])
            else:
                parts = shorten(sample.conversation, self._renderer, row_tokens, policy)
                pieces += [replace(sample, conversation=c, piece=k) for k, c in enumerate(parts, 1)]
                num_pieces = len(parts)
            fate = SHORTENED if num_pieces else TOO_LONG
            lines.append(_left_out(sample, fate, reason, text))
        if pieces:
            conversations = [piece.conversation for piece in pieces]
            shortened.append((pieces, self._renderer.render_batch(conversations)))
        return build_table(number, lines, rendered, fits), shortened

    def _sample_line(self, sample: Sample) -> dict[str, Any]:
        line: dict[str, Any] = {
            "row": sample.row,
            "piece": sample.piece,
            "fate": sample.fate,
            "copies": sample.copies,
            "is_text": sample.conversation.is_text,
            "facts": sample.facts,
            "sample_id": content_id(sample.conversation),
            "cluster_id": sample.cluster_id,
            "prompt_key": sample.prompt_keys[-1],
        }
        num_texts = sum(map(_has_text_and_calls, sample.conversation.turns))
        rendered_too = self._renderer.shows_text_with_calls
        line["num_call_texts"] = num_texts
        line["num_unrendered_call_texts"] = 0 if rendered_too else num_texts
        if len(sample.prompt_keys) > 1:
            line["earlier_keys"] = sample.prompt_keys[:-1]
        if self._config.near_duplicates is not None:
            line["signature"] = signature(text_of(sample.conversation))
        if sample.fate == HELDOUT:
            line |= self._prompt(sample)
        return line

    def _prompt(self, sample: Sample) -> dict[str, Any]:
        """The prompt and reference answer by which evaluation scores a held-out row."""
        if sample.conversation.is_text:
            return {}
        messages = sample.conversation.messages()
        last = last_answer([message["role"] for message in messages])
        before = messages[:last]
        try:
            prompt_ids = self._renderer.prompt_ids(before, sample.conversation.tools)
        except TemplateError:  # nothing precedes the first answer: there is no prompt
            return {}
        prompt = "\n\n".join(
            m["content"] if len(before) == 1 else f"{m['role']}: {m['content']}" for m in before
        )
        return {
            "prompt_ids": prompt_ids,
            "reference": messages[last]["content"],
            "prompt": prompt,
            "messages": json.dumps(before, ensure_ascii=False),
        }


def _left_out(sample: Sample, fate: int, reason: str, text: str = "") -> dict[str, Any]:
    is_text = sample.conversation.is_text
    return reject_line(sample.row, fate, reason, text, is_text=is_text, facts=sample.facts)


def _has_text_and_calls(turn: Turn) -> bool:
    return bool(turn.tool_calls) and bool(turn.content.rpartition("</think>")[2].strip())


def _no_loss(num_left_out: int) -> str:
    """Why no token of a row enters the loss."""
    if num_left_out:
        return (
            "its trained answers stand behind another text than the generation prompt that serving "
            "sends, and only its last answer does not"
        )
    return "no token of it enters the loss"


def _num_loss_tokens(rendered: RenderedBatch) -> np.ndarray:
    """Label positions of each conversation, int64 [conversations]."""
    return np.diff(np.searchsorted(np.flatnonzero(rendered.weights), rendered.offsets))
