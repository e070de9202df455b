"""Reads back a prepared artifact as training will read it: figures, histograms and examples."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.chat.default_templates import layout_note
from pipelines.config.schema import AuditConfig
from pipelines.core.artifacts import PreparedDataset
from pipelines.data.audit.answers import answer_notes
from pipelines.data.audit.problems import problems_of
from pipelines.data.audit.row_notes import row_notes
from pipelines.data.rejects import FILE, RejectKind, reject_kinds
from pipelines.packed.reader import PackedSample, RowReader
from pipelines.storage import Artifact


@dataclass(frozen=True)
class Histogram:
    """Counts of `edges[i] <= value < edges[i + 1]`; the last bin includes its upper edge.

    `unit` is "tokens", or "share" for values in 0..1.
    """

    name: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    median: float

    def label(self, value: float) -> str:
        return f"{value:.0%}" if self.unit == "share" else f"{value:,.0f}"


@dataclass(frozen=True)
class Audit:
    """Everything that `inspect` shows. `problems` is empty when the dataset may be trained on.

    `notes` are facts that stop nothing; `files` are the names of the files by their number in the
    examples.
    """

    prepared: PreparedDataset
    histograms: tuple[Histogram, ...]
    examples: tuple[PackedSample, ...]
    rejects: tuple[RejectKind, ...]
    sources: tuple[str, ...]
    files: tuple[str, ...]
    checks: Mapping[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def heading(self, example: PackedSample) -> str:
        """A line about an example: its row, its tokens and the checks that it fails."""
        is_known = 0 <= example.file < len(self.files)
        origin = f"{self.files[example.file]}:{example.line}, " if is_known else ""
        faults = f", fails {', '.join(example.fault.split())}" if example.fault else ""
        return (
            f"{origin}sample {example.sample_id}, {len(example.input_ids):,} tokens, "
            f"{_loss_share(example):.0%} in the loss{faults}"
        )


def audit(
    artifact: Artifact,
    prepared: PreparedDataset,
    folder: Path,
    limits: AuditConfig,
    allow_keys: Collection[str] = (),
    num_examples: int = 3,
    num_worst: int = 0,
) -> Audit:
    """Read an artifact's training split once and compare it with `limits` and `allow_keys`.

    The examples are spread evenly over the samples. With `num_worst` they are the samples that fail
    most checks, and of equal ones those with the least share of tokens in the loss.
    """
    lengths: list[int] = []
    loss_shares: list[float] = []
    fills: list[float] = []
    examples: list[PackedSample] = []
    worst: list[tuple[tuple[int, float, int], PackedSample]] = []  # a heap, the best of them first
    num_samples = prepared.train.num_samples
    chosen = {i * num_samples // num_examples for i in range(num_examples)}
    for pack in RowReader(folder, "train").packs():
        for sample in pack:
            number, share = len(lengths), _loss_share(sample)
            if num_worst:
                rank = len(sample.fault.split()), -share, -number
                keep = heapq.heappush if len(worst) < num_worst else heapq.heappushpop
                keep(worst, (rank, sample))
            elif number in chosen:
                examples.append(sample)
            lengths.append(len(sample.input_ids))
            loss_shares.append(share)
        fills.append(sum(len(sample.input_ids) for sample in pack) / prepared.row_tokens)
    histograms = (
        _histogram("sample lengths", "tokens", lengths, max(lengths, default=0) + 1),
        _histogram("loss share of a sample", "share", loss_shares, 1),
        _histogram("fill of a pack", "share", fills, 1),
    )
    examples += [sample for _, sample in sorted(worst, reverse=True)]
    layout = prepared.default_layout
    return Audit(
        prepared,
        histograms,
        tuple(examples),
        tuple(reject_kinds(folder / FILE)),
        tuple(dict.fromkeys(source["file"] for source in artifact.metadata["sources"])),
        tuple(artifact.metadata.get("files", ())),
        artifact.metadata.get("checks", {}),
        problems_of(artifact, prepared, limits, allow_keys),
        (
            *((layout_note(layout),) if layout else ()),
            *row_notes(artifact.metadata, limits),
            *answer_notes(artifact.metadata),
        ),
    )


def _loss_share(sample: PackedSample) -> float:
    return np.count_nonzero(sample.loss_weights) / len(sample.input_ids)


def _histogram(
    name: str, unit: str, values: list[int] | list[float], high: float, bins: int = 20
) -> Histogram:
    counts, edges = np.histogram(values, bins=bins, range=(0, high))
    median = float(np.median(values)) if values else 0.0
    return Histogram(name, unit, tuple(edges.tolist()), tuple(counts.tolist()), median)
