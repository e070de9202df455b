"""What the loss will see, read back from a prepared artifact: figures, histograms, examples, and what is wrong with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.chat import ChatRenderer
from pipelines.config.schema import AuditConfig
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.errors import UserError
from pipelines.data.rejects import RejectKind, reject_kinds
from pipelines.storage import Artifact

_NO_CHARACTER, _GLYPH_TOKENS = (
    "\ufffd",
    12,
)  # what bytes that spell none are shown as; an emoji takes up to as many
_FIRST = {name: i for i, name in enumerate(("read", "train", "heldout", "rejected"))}


@dataclass(frozen=True)
class Histogram:
    """Counts of `edges[i] <= value < edges[i + 1]`; the last bin holds its upper edge too. `unit`: "tokens", or "share" for
    values in 0..1.
    """

    name: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    median: float

    def label(self, value: float) -> str:
        return f"{value:.0%}" if self.unit == "share" else f"{value:,.0f}"


@dataclass(frozen=True)
class Example:
    """One training sample: its tokens and their loss weights."""

    sample_id: str
    input_ids: np.ndarray
    loss_weights: np.ndarray


@dataclass(frozen=True)
class Audit:
    """Everything that `inspect` shows. `problems` is empty when all is well."""

    prepared: PreparedDataset
    histograms: tuple[Histogram, ...]
    examples: tuple[Example, ...]
    lost: tuple[RejectKind, ...]
    sources: tuple[str, ...]
    checks: Mapping[str, int]
    problems: tuple[str, ...]


def audit(
    artifact: Artifact,
    prepared: PreparedDataset,
    folder: Path,
    limits: AuditConfig,
    num_examples: int = 3,
) -> Audit:
    """Read an artifact's training split once, row group by row group, and judge it by `limits`. The examples are spread
    evenly over the samples.
    """
    lengths: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    fills: list[float] = []
    examples: list[Example] = []
    num_samples, seen = prepared.train.num_samples, 0
    wanted = {i * num_samples // num_examples for i in range(num_examples)}
    for row_lengths, ids, weights, names in _rows(folder, "train"):
        ends = np.cumsum(row_lengths)
        trained = (
            np.add.reduceat(weights > 0, ends - row_lengths, dtype=np.int64) if len(ends) else ends
        )
        lengths.append(row_lengths)
        shares.append(trained / row_lengths)
        fills.append(float(row_lengths.sum() / len(ids)))
        for number, (name, end, length) in enumerate(
            zip(names, ends, row_lengths, strict=True), seen
        ):
            if number in wanted:
                examples.append(Example(name, ids[end - length : end], weights[end - length : end]))
        seen += len(names)
    all_lengths = np.concatenate(lengths) if lengths else np.zeros(1, np.int64)
    histograms = (
        _histogram("sample lengths", "tokens", all_lengths, 0, int(all_lengths.max()) + 1),
        _histogram(
            "trained share of a sample",
            "share",
            np.concatenate(shares) if shares else np.zeros(0),
            0,
            1,
        ),
        _histogram("fill of a pack", "share", np.array(fills), 0, 1),
    )
    checks = artifact.metadata.get("checks", {})
    problems = problems_of(artifact, prepared, limits)
    lost, sources = (
        reject_kinds(folder / "rejects.jsonl"),
        dict.fromkeys(each["file"] for each in artifact.metadata["sources"]),
    )
    return Audit(
        prepared, histograms, tuple(examples), tuple(lost), tuple(sources), checks, problems
    )


def _rows(
    folder: Path, split: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]]:
    """Of every pack: its samples' lengths, ids [T], weights [T] and the samples' names."""
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            width = table.schema.field("input_ids").type.list_size
            ids, weights = (
                table[name].combine_chunks().flatten().to_numpy().reshape(-1, width)
                for name in ("input_ids", "loss_weights")
            )
            for i, (sizes, names) in enumerate(
                zip(
                    table["sample_lengths"].to_pylist(),
                    table["sample_ids"].to_pylist(),
                    strict=True,
                )
            ):
                yield np.array(sizes, np.int64), ids[i], weights[i], names


def _histogram(
    name: str, unit: str, values: np.ndarray, low: float, high: float, bins: int = 20
) -> Histogram:
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    median = float(np.median(values)) if len(values) else 0.0
    return Histogram(name, unit, tuple(edges.tolist()), tuple(counts.tolist()), median)


def problems_of(
    artifact: Artifact, prepared: PreparedDataset, limits: AuditConfig
) -> tuple[str, ...]:
    """What is wrong with a dataset by its manifest alone, worst first; none when it may be trained on."""
    return tuple(_problems(prepared, artifact.metadata.get("checks", {}), limits))


def refuse(artifact: Artifact, prepared: PreparedDataset, limits: AuditConfig) -> None:
    """Raise UserError, before anything is trained on a dataset, when something is wrong with it."""
    problems = problems_of(artifact, prepared, limits)
    if problems:
        raise UserError(
            f"dataset {prepared.ref.name}: {'; and '.join(problems)} (`loraforge inspect` shows the rows)"
        )


def _problems(
    prepared: PreparedDataset, checks: Mapping[str, int], limits: AuditConfig
) -> Iterator[str]:
    counts, train = prepared.counts, prepared.train
    missing = _failed_share(checks, "stop_trained")
    if missing > limits.max_stop_missing_share:
        yield (
            f"{missing:.1%} of the trained turns do not end in a stop token, above data.audit.max_stop_missing_share="
            f"{limits.max_stop_missing_share}: the model would not learn to end; mend the base's chat template"
        )
    differs = _failed_share(checks, "prefix_matches")
    if differs > limits.max_prefix_differs_share:
        yield (
            f"the training ids of {differs:.1%} of the checked rows do not begin with their generation prompt, above "
            f"data.audit.max_prefix_differs_share={limits.max_prefix_differs_share}: the chat template joins prompt and "
            "answer without a token between them"
        )
    share = train.num_loss_tokens / max(1, train.num_tokens)
    if share < limits.min_trained_share:
        yield f"only {share:.2%} of the tokens are trained, below data.audit.min_trained_share={limits.min_trained_share}"
    lost = (counts.get("too_long", 0) + counts.get("shortened", 0)) / max(1, counts["read"])
    if lost > limits.max_lost_share:
        yield (
            f"{lost:.1%} of the rows are too long for a pack, above data.audit.max_lost_share={limits.max_lost_share}: "
            "raise data.row_tokens or set data.too_long=split"
        )
    fill = train.fill(prepared.row_tokens)
    # One pack cannot be full: a small dataset says nothing about packing.
    if train.num_rows > 20 and fill < limits.min_fill:
        yield f"fill is {fill:.1%}, below data.audit.min_fill={limits.min_fill}: set data.row_tokens larger"


def _failed_share(checks: Mapping[str, int], name: str) -> float:
    return checks.get(f"{name}_failed", 0) / max(1, checks.get(f"{name}_checked", 0))


def spans(weights: Sequence[float] | np.ndarray) -> list[tuple[int, int, bool]]:
    """Runs of trained and masked tokens as (first, last, trained)."""
    trained = np.asarray(weights) > 0
    cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(trained)]
    return [(a, b, bool(trained[a])) for a, b in itertools.pairwise(cuts) if b > a]


def glyphs(ids: Sequence[int], renderer: ChatRenderer) -> list[tuple[list[int], str]]:
    """Tokens with their texts; those that only together spell a character are one."""
    texts, found, first = renderer.decode_each(ids), [], 0
    while first < len(ids):
        last, text = first + 1, texts[first]
        while (
            _NO_CHARACTER in text
            and last < min(len(ids), first + _GLYPH_TOKENS)
            and _NO_CHARACTER in texts[last]
        ):
            last += 1
            text = renderer.decode(ids[first:last], skip_control=False)
        if _NO_CHARACTER in text:
            last, text = first + 1, texts[first]
        found.append((list(ids[first:last]), text))
        first = last
    return found


def facts_of(audit: Audit) -> dict[str, Any]:
    """The figures of the summary, in the order in which people ask for them."""
    prepared = audit.prepared
    more = f" and {len(audit.sources) - 5:,} more" if len(audit.sources) > 5 else ""
    facts: dict[str, Any] = {
        "dataset": prepared.ref.name,
        "files": f"{', '.join(audit.sources[:5])}{more}",
    }
    for name, split in (("train", prepared.train), ("held out", prepared.heldout)):
        share = split.num_loss_tokens / max(1, split.num_tokens)
        facts[name] = (
            f"{split.num_samples:,} samples, {split.num_tokens:,} tokens, {share:.1%} trained, "
            f"{split.num_rows:,} packs of {prepared.row_tokens:,}, fill {split.fill(prepared.row_tokens):.2%}"
        )
    order = sorted(
        prepared.counts.items(), key=lambda item: (_FIRST.get(item[0], len(_FIRST)), item[0])
    )
    facts["rows"] = ", ".join(
        f"{name.replace('_', ' ')} {count:,}" for name, count in order if count
    )
    for name, text in (
        ("prefix_matches", "begin with their generation prompt"),
        ("stop_trained", "end in a trained stop token"),
    ):
        checked = audit.checks.get(f"{name}_checked", 0)
        what = "rows checked" if name == "prefix_matches" else "trained turns"
        facts[text] = f"{checked - audit.checks.get(f'{name}_failed', 0):,} of {checked:,} {what}"
    beside, unshown = (
        audit.checks.get(f"texts_beside_calls_{end}", 0) for end in ("checked", "failed")
    )
    if beside:
        facts["text beside tool calls"] = f"rendered in {beside - unshown:,} of {beside:,} turns"
    wrongly, others = (
        audit.checks.get(f"other_turns_masked_{end}", 0) for end in ("failed", "checked")
    )
    facts["trained tokens elsewhere"] = f"{wrongly:,} in {others:,} system, user and tool turns"
    return facts
