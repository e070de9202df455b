"""Schema of packed rows."""

from __future__ import annotations

import pyarrow as pa


def row_schema(row_tokens: int) -> pa.Schema:
    """Columns of a packed row: the padding tail has id 0 and weight 0."""
    return pa.schema(
        {
            "input_ids": pa.list_(pa.int32(), row_tokens),
            "loss_weights": pa.list_(pa.float32(), row_tokens),
            "sample_lengths": pa.list_(pa.int32()),
            "sample_ids": pa.list_(pa.string()),
        }
    )
