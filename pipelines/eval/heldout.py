"""The frozen held-out set as work for the scorers: batches of whole samples for the loss, batches of prompts to answer.

Read from a finished `prepared` artifact; every candidate gets the same samples in the same batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from pipelines.core.artifacts import PreparedDataset
from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError
from pipelines.packed.reader import PackedSample, RowReader, read_heldout_samples
from pipelines.storage import Store

LOSS_BATCH_TOKENS = 4096
EVAL_BATCH_SCHEMA = pa.schema(
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
    """Every held-out sample, the prompts to answer, and the sha256 of the files that they were read from."""

    samples: tuple[PackedSample, ...]
    prompts: tuple[Prompt, ...]
    digest: str


@dataclass(frozen=True)
class EvalBatch:
    """One batch. `weights` is empty for kind "answer"."""

    kind: Literal["loss", "answer"]
    sample_ids: list[str]
    tokens: list[np.ndarray]
    weights: list[np.ndarray]


def load_heldout(store: Store, prepared: PreparedDataset, max_prompts: int) -> HeldoutSet:
    """Read the held-out split. Raises UserError when it is empty or has no loss token."""
    folder = store.local_dir(prepared.ref)
    samples = tuple(RowReader(folder, "heldout").samples())
    if not any(s.loss_weights[1:].any() for s in samples):
        raise UserError(
            f"{prepared.ref.uri}: holds no held-out sample to score; set data.heldout_share above 0 "
            "or give a source with split: heldout"
        )
    return HeldoutSet(
        samples,
        _prompts(folder, max_prompts),
        heldout_digest(store, prepared),
    )


def heldout_digest(store: Store, prepared: PreparedDataset) -> str:
    """Hex sha256 over the held-out files' own sha256: equal digests mean that two reports can be compared."""
    artifact = store.read(prepared.ref.uri)
    if artifact is None:
        raise UserError(f"{prepared.ref.uri}: the prepared dataset is gone; run prepare again")
    return digest_of(
        {n: f["sha256"] for n, f in artifact.files.items() if Path(n).name.startswith("heldout")}
    )


def loss_batches(
    samples: Sequence[PackedSample], max_tokens: int = LOSS_BATCH_TOKENS
) -> list[EvalBatch]:
    """Batches of samples of like length whose padded size stays within `max_tokens` (a longer sample goes alone)."""
    batches: list[list[PackedSample]] = []
    for sample in sorted(samples, key=lambda s: (-len(s.input_ids), s.sample_id)):
        if batches and len(batches[-1][0].input_ids) * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return [
        EvalBatch(
            "loss", [s.sample_id for s in b], [s.input_ids for s in b], [s.loss_weights for s in b]
        )
        for b in batches
    ]


def answer_batches(prompts: Sequence[Prompt], batch_size: int) -> list[EvalBatch]:
    """Batches of prompts of like length."""
    ordered = sorted(prompts, key=lambda p: (-len(p.prompt_ids), p.sample_id))
    groups = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return [
        EvalBatch("answer", [p.sample_id for p in g], [p.prompt_ids for p in g], []) for g in groups
    ]


def batch_table(works: Sequence[EvalBatch]) -> pa.Table:
    """Batches as Arrow, one row a batch."""
    rows = [
        {
            "kind": w.kind,
            "sample_ids": w.sample_ids,
            "tokens": w.tokens,
            "weights": w.weights or None,
        }
        for w in works
    ]
    return pa.Table.from_pylist(rows, schema=EVAL_BATCH_SCHEMA)


def batch_from_row(row: dict) -> EvalBatch:
    """The inverse of one row of `batch_table`."""
    tokens = [np.asarray(t, dtype=np.int32) for t in row["tokens"]]
    weights = [np.asarray(w, dtype=np.float32) for w in row["weights"] or []]
    return EvalBatch(row["kind"], list(row["sample_ids"]), tokens, weights)


def _prompts(folder: Path, max_prompts: int) -> tuple[Prompt, ...]:
    """At most `max_prompts` prompts, chosen by the hash of their ids: the same ones every time, from all sources."""
    columns = ("sample_id", "prompt_ids", "prompt", "reference")
    rows = read_heldout_samples(folder, columns)
    rows = [row for row in rows if row["prompt_ids"]]
    chosen = sorted(rows, key=lambda row: hashlib.sha256(row["sample_id"].encode()).digest())[
        :max_prompts
    ]
    return tuple(
        Prompt(
            r["sample_id"], np.asarray(r["prompt_ids"], dtype=np.int32), r["prompt"], r["reference"]
        )
        for r in chosen
    )
