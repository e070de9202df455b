"""Problems of a dataset that stop training, decided from its manifest without reading its rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipelines.config.schema import AuditConfig, DataConfig
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.errors import UserError
from pipelines.data.audit.answers import answer_problems
from pipelines.data.audit.row_notes import row_problems
from pipelines.storage import Artifact

_MIN_PACKS = 20  # the last packs are never full, so a small dataset says nothing about packing


def refuse(artifact: Artifact, prepared: PreparedDataset, config: DataConfig) -> None:
    """Raise UserError, before any training, when the dataset has problems."""
    problems = problems_of(artifact, prepared, config.audit, config.unused_keys.allow)
    if problems:
        raise UserError(
            f"dataset {prepared.ref.name}: {'; and '.join(problems)} "
            "(`loraforge inspect` shows the rows)"
        )


def problems_of(
    artifact: Artifact,
    prepared: PreparedDataset,
    limits: AuditConfig,
    allow_keys: Collection[str] = (),
) -> tuple[str, ...]:
    """The crossed limits of `data.audit` and the unused keys that are not in `allow_keys`, worst
    first; none when the dataset may be trained on.
    """
    rows = row_problems(artifact.metadata, limits, allow_keys)
    return (*rows, *_problems(prepared, artifact.metadata, limits))


def _problems(
    prepared: PreparedDataset, metadata: Mapping[str, Any], limits: AuditConfig
) -> Iterator[str]:
    yield from answer_problems(metadata, limits)
    counts, train = prepared.counts, prepared.train
    share = train.num_loss_tokens / max(1, train.num_tokens)
    if share < limits.min_trained_share:
        yield (
            f"only {share:.2%} of the tokens enter the loss, below data.audit.min_trained_share="
            f"{limits.min_trained_share}"
        )
    # Plain text that is split loses nothing.
    is_split_text = prepared.kind == "text" and metadata.get("too_long") == "split"
    num_shortened = 0 if is_split_text else counts.get("shortened", 0)
    too_long = (counts.get("too_long", 0) + num_shortened) / max(1, counts["read"])
    if too_long > limits.max_lost_share:
        yield (
            f"{too_long:.1%} of the rows are too long for a pack, above data.audit.max_lost_share="
            f"{limits.max_lost_share}: raise data.row_tokens or set data.too_long=split"
        )
    fill = train.fill(prepared.row_tokens)
    if train.num_rows > _MIN_PACKS and fill < limits.min_fill:
        yield (
            f"fill is {fill:.1%}, below data.audit.min_fill={limits.min_fill}: set data.row_tokens "
            "larger"
        )
