"""The Arrow tables that tasks return: one line per row or piece, with what became of each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.chat import RenderedBatch
from pipelines.core.errors import UserError
from pipelines.data.read.raw_row import printable

# The fates of rows. Pieces of a SHORTENED row are lines of their own, numbered from 1 in `piece`.
TRAIN, HELDOUT, REJECTED, FILTERED, SKIPPED, TOO_LONG, SHORTENED, LEAKED = range(8)
# No rows: the reason why the stage cannot continue, and the number of lines of a chunk.
_STOPPED, CHUNK_END = -1, -2

MASK_COUNTS = (
    "num_loss_turns",
    "num_missing_stop",
    "num_context_spans",
    "num_leaked_tokens",
    "num_prompts",
    "num_prompts_differ",
    "num_no_thought",
    "num_left_out",
    "num_thoughts",
    "num_dropped_thoughts",
)
"""Columns with the counts of chat.loss_mask.LossMasks, of the same names."""

SCHEMA = pa.schema(
    {
        "chunk": pa.int32(),
        "row": pa.int64(),  # number in its chunk
        "piece": pa.int32(),
        "fate": pa.int8(),
        "reason": pa.string(),  # of a row that is in no split as it was read, with its text
        "text": pa.string(),
        "sample_id": pa.binary(16),
        "cluster_id": pa.binary(16),
        "prompt_key": pa.int64(),
        "earlier_keys": pa.list_(pa.int64()),  # prompt keys of the answers before the last
        "copies": pa.int32(),
        "is_text": pa.bool_(),  # plain text; null for a row that could not be converted
        "facts": pa.string(),  # see row_facts
        "signature": pa.binary(),
        **{name: pa.int32() for name in MASK_COUNTS},
        "num_call_texts": pa.int32(),  # turns with both text and tool calls
        "num_unrendered_call_texts": pa.int32(),  # those of them whose text the template leaves out
        "input_ids": pa.large_list(pa.int32()),
        "loss_weights": pa.large_list(pa.float32()),
        "prompt_ids": pa.large_list(pa.int32()),  # of a held-out row, with the columns below
        "reference": pa.string(),
        "prompt": pa.string(),
        "messages": pa.string(),
    }
)


def reject_line(row: int, fate: int, reason: str, text: str, **columns: Any) -> dict[str, Any]:
    """The line of a row that is in no split as it was read."""
    line = {"row": row, "piece": 0, "fate": fate, "reason": printable(reason), "text": text}
    return line | columns


def chunk_end(chunk: int, num_lines: int) -> pa.Table:
    """A table that ends a chunk: its number of lines is in `row`."""
    line = {"chunk": chunk, "row": num_lines, "piece": 0, "fate": CHUNK_END}
    return pa.Table.from_pylist([line], SCHEMA)


def build_table(
    chunk: int, lines: list[dict[str, Any]], rendered: RenderedBatch, fits: np.ndarray
) -> pa.Table:
    """The lines as a table of SCHEMA.

    The last lines are the rendered conversations that `fits` (bool [conversations]) selects, in
    order; lines before them have no tokens.
    """
    lengths = np.diff(rendered.offsets)
    tokens = slice(None) if fits.all() else np.repeat(fits, lengths)
    before = np.zeros(len(lines) - len(fits), np.int64)
    offsets = pa.array(np.concatenate(([0], np.cumsum(np.concatenate((before, lengths * fits))))))
    columns: dict[str, Any] = {
        "chunk": pa.array(np.full(len(lines), chunk, np.int32)),
        "input_ids": pa.LargeListArray.from_arrays(offsets, pa.array(rendered.ids[tokens])),
        "loss_weights": pa.LargeListArray.from_arrays(offsets, pa.array(rendered.weights[tokens])),
    }
    for field in SCHEMA:
        if field.name not in columns:
            columns[field.name] = pa.array([line.get(field.name) for line in lines], field.type)
    return pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def stopped_table(chunk: int, error: UserError) -> pa.Table:
    """A table that carries an error to the driver; Ray would print one raised in a task."""
    line = {"chunk": chunk, "fate": _STOPPED, "reason": str(error)}
    return pa.Table.from_pylist([line], SCHEMA)


def unless_stopped(table: pa.Table) -> pa.Table:
    """The table, or the UserError that `stopped_table` put into it."""
    stopped = np.flatnonzero(table["fate"].to_numpy() == _STOPPED)
    if len(stopped):
        raise UserError(table["reason"][int(stopped[0])].as_py())
    return table
