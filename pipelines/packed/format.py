"""The packed format: the columns of packed rows and of held-out samples, and the names of files.

A prepared artifact has packed rows in `train-00000.parquet`, `heldout-00000.parquet` and so on, and
in `heldout_samples.parquet` one row for each held-out sample that has a prompt to answer.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

HELDOUT_SAMPLES = "heldout_samples.parquet"
TRAINING_COLUMNS = ("input_ids", "loss_weights", "sample_lengths", "sample_ids")
"""The columns that training reads; the others are for evaluation and audits."""

# What identifies a sample. `sample_id` is a digest of its content, `cluster_id` one of its opening,
# which variants of one conversation share. `source` is the number of the source in the recipe,
# `slice` a name for reports ("" by default), and `split` is "train", "select" or "gate". `file` is
# a number in the manifest's `files`, `line` the row's line or number in it, from 1. `fault` has the
# names of the checks that the sample fails, separated by spaces.
LABELS = {
    "sample_id": pa.string(),
    "cluster_id": pa.string(),
    "source": pa.int32(),
    "slice": pa.string(),
    "split": pa.string(),
    "file": pa.int32(),
    "line": pa.int64(),
    "fault": pa.string(),
}
HELDOUT_SCHEMA = pa.schema(
    {
        **LABELS,
        "prompt_ids": pa.large_list(pa.int32()),
        "reference": pa.string(),
        "prompt": pa.string(),
        "messages": pa.string(),  # the prompt's messages as JSON
    }
)


def row_schema(row_tokens: int) -> pa.Schema:
    """Columns of a packed row; the padding at its end has id 0 and weight 0.

    The list columns have one entry for each sample of the row, in the order of their tokens.
    """
    return pa.schema(
        {
            "input_ids": pa.list_(pa.int32(), row_tokens),
            "loss_weights": pa.list_(pa.float32(), row_tokens),
            "sample_lengths": pa.list_(pa.int32()),
            **{row_column(name): pa.list_(kind) for name, kind in LABELS.items()},
        }
    )


def row_column(label: str) -> str:
    """The column of packed rows that lists one of LABELS for each sample: `sample_ids`, ..."""
    return f"{label}s"


def shard_path(folder: Path, split: str, number: int) -> Path:
    """The file of a split's shard."""
    return folder / f"{split}-{number:05d}.parquet"


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The files of a split, in order."""
    return sorted(folder.glob(f"{split}-*.parquet"))
