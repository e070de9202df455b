"""The frozen held-out set as batches for the scorers: samples for the loss, prompts to answer.

It is read from a finished `prepared` artifact. Every candidate gets the same samples in the same
batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipelines.core.artifacts import PreparedDataset
from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError
from pipelines.packed.reader import PackedSample, RowReader, read_heldout_samples
from pipelines.storage import Store

_LOSS_BATCH_TOKENS = 4096
_BATCH_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("sample_ids", pa.list_(pa.string())),
        ("tokens", pa.list_(pa.list_(pa.int32()))),
        ("weights", pa.list_(pa.list_(pa.float32()))),
    ]
)


@dataclass(frozen=True)
class Prompt:
    """One prompt to answer: its token ids, its readable text and the reference answer."""

    sample_id: str
    prompt_ids: np.ndarray
    text: str
    reference: str


@dataclass(frozen=True)
class HeldoutSet:
    """Every held-out sample, the prompts to answer, and `heldout_digest` of their files."""

    samples: tuple[PackedSample, ...]
    prompts: tuple[Prompt, ...]
    digest: str


@dataclass(frozen=True)
class EvalBatch:
    """A batch for a scorer: token ids int32 [T] of each sample.

    For kind "loss", `weights` has float32 [T] of each sample: the weight of each token as a label.
    For kind "answer" the tokens are prompts, and `weights` is empty.
    """

    kind: Literal["loss", "answer"]
    sample_ids: list[str]
    tokens: list[np.ndarray]
    weights: list[np.ndarray]


def load_heldout(store: Store, prepared: PreparedDataset, max_prompts: int) -> HeldoutSet:
    """Read the held-out split and choose at most `max_prompts` prompts.

    Raises UserError if the split is empty or no sample has a label with weight.
    """
    folder = store.local_dir(prepared.ref)
    samples = tuple(RowReader(folder, "heldout").samples())
    if not any(s.loss_weights[1:].any() for s in samples):
        raise UserError(
            f"{prepared.ref.uri}: the dataset has no held-out sample to score; set "
            "data.heldout_share above 0 or give a source with split: heldout"
        )
    digest = heldout_digest(store, prepared)
    return HeldoutSet(samples, _choose_prompts(folder, max_prompts), digest)


def heldout_digest(store: Store, prepared: PreparedDataset) -> str:
    """Hex sha256 over the held-out files' own sha256.

    Two reports can be compared if their digests are equal.
    """
    artifact = store.read(prepared.ref.uri)
    if artifact is None:
        raise UserError(f"{prepared.ref.uri}: the prepared dataset is gone; run prepare again")
    files = artifact.files.items()
    return digest_of(
        {name: file["sha256"] for name, file in files if Path(name).name.startswith("heldout")}
    )


def loss_batches(
    samples: Sequence[PackedSample], max_tokens: int = _LOSS_BATCH_TOKENS
) -> list[EvalBatch]:
    """Batches of samples of similar length, at most `max_tokens` each with padding.

    A sample that is longer is a batch of its own.
    """
    groups: list[list[PackedSample]] = []
    for sample in sorted(samples, key=lambda s: (-len(s.input_ids), s.sample_id)):
        # The first sample of a group is its longest, so all are padded to its length.
        if groups and len(groups[-1][0].input_ids) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return [
        EvalBatch(
            "loss",
            [sample.sample_id for sample in group],
            [sample.input_ids for sample in group],
            [sample.loss_weights for sample in group],
        )
        for group in groups
    ]


def answer_batches(prompts: Sequence[Prompt], batch_size: int) -> list[EvalBatch]:
    """Batches of `batch_size` prompts of similar length."""
    ordered = sorted(prompts, key=lambda p: (-len(p.prompt_ids), p.sample_id))
    groups = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return [
        EvalBatch("answer", [p.sample_id for p in g], [p.prompt_ids for p in g], []) for g in groups
    ]


def batch_table(batches: Sequence[EvalBatch]) -> pa.Table:
    """Batches as an Arrow table with one row for each."""
    rows = [
        {
            "kind": batch.kind,
            "sample_ids": batch.sample_ids,
            "tokens": batch.tokens,
            "weights": batch.weights or None,
        }
        for batch in batches
    ]
    return pa.Table.from_pylist(rows, schema=_BATCH_SCHEMA)


def batch_from_row(row: dict[str, Any]) -> EvalBatch:
    """The batch of one row of `batch_table`."""
    tokens = [np.asarray(t, dtype=np.int32) for t in row["tokens"]]
    weights = [np.asarray(w, dtype=np.float32) for w in row["weights"] or []]
    return EvalBatch(row["kind"], list(row["sample_ids"]), tokens, weights)


def _choose_prompts(folder: Path, max_prompts: int) -> tuple[Prompt, ...]:
    """At most `max_prompts` prompts in the order of their ids' sha256.

    So every evaluation has the same prompts, and they come from all sources.
    """
    columns = ("sample_id", "prompt_ids", "prompt", "reference")
    rows = [row for row in read_heldout_samples(folder, columns) if row["prompt_ids"]]
    rows.sort(key=lambda row: hashlib.sha256(row["sample_id"].encode()).digest())
    return tuple(
        Prompt(
            row["sample_id"],
            np.asarray(row["prompt_ids"], dtype=np.int32),
            row["prompt"],
            row["reference"],
        )
        for row in rows[:max_prompts]
    )
