"""Reads back a prepared artifact as training will read it: figures, histograms and examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.config.schema import AuditConfig
from pipelines.core.artifacts import PreparedDataset
from pipelines.data.audit.problems import problems_of
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
    """Everything that `inspect` shows. `problems` is empty when the dataset may be trained on."""

    prepared: PreparedDataset
    histograms: tuple[Histogram, ...]
    examples: tuple[PackedSample, ...]
    rejects: tuple[RejectKind, ...]
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
    """Read an artifact's training split once and compare it with `limits`.

    The examples are spread evenly over the samples.
    """
    lengths: list[int] = []
    loss_shares: list[float] = []
    fills: list[float] = []
    examples: list[PackedSample] = []
    num_samples = prepared.train.num_samples
    chosen = {i * num_samples // num_examples for i in range(num_examples)}
    for pack in RowReader(folder, "train").packs():
        for sample in pack:
            if len(lengths) in chosen:
                examples.append(sample)
            lengths.append(len(sample.input_ids))
            loss_shares.append(np.count_nonzero(sample.loss_weights) / len(sample.input_ids))
        fills.append(sum(len(sample.input_ids) for sample in pack) / prepared.row_tokens)
    histograms = (
        _histogram("sample lengths", "tokens", lengths, max(lengths, default=0) + 1),
        _histogram("loss share of a sample", "share", loss_shares, 1),
        _histogram("fill of a pack", "share", fills, 1),
    )
    return Audit(
        prepared,
        histograms,
        tuple(examples),
        tuple(reject_kinds(folder / FILE)),
        tuple(dict.fromkeys(source["file"] for source in artifact.metadata["sources"])),
        artifact.metadata.get("checks", {}),
        problems_of(artifact, prepared, limits),
    )


def _histogram(
    name: str, unit: str, values: list[int] | list[float], high: float, bins: int = 20
) -> Histogram:
    counts, edges = np.histogram(values, bins=bins, range=(0, high))
    median = float(np.median(values)) if values else 0.0
    return Histogram(name, unit, tuple(edges.tolist()), tuple(counts.tolist()), median)
