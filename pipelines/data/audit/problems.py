"""Problems of a dataset that stop training, decided from its manifest without reading its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipelines.config.schema import AuditConfig
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.errors import UserError
from pipelines.storage import Artifact

_MIN_PACKS = 20  # the last packs are never full, so a small dataset says nothing about packing


def refuse(artifact: Artifact, prepared: PreparedDataset, limits: AuditConfig) -> None:
    """Raise UserError, before any training, when the dataset has problems."""
    problems = problems_of(artifact, prepared, limits)
    if problems:
        raise UserError(
            f"dataset {prepared.ref.name}: {'; and '.join(problems)} "
            "(`loraforge inspect` shows the rows)"
        )


def problems_of(
    artifact: Artifact, prepared: PreparedDataset, limits: AuditConfig
) -> tuple[str, ...]:
    """The crossed limits of `data.audit`, worst first; none when the dataset may be trained on."""
    return tuple(_problems(prepared, artifact.metadata.get("checks", {}), limits))


def _problems(
    prepared: PreparedDataset, checks: Mapping[str, int], limits: AuditConfig
) -> Iterator[str]:
    counts, train = prepared.counts, prepared.train
    missing = _failed_share(checks, "stop_trained")
    if missing > limits.max_stop_missing_share:
        yield (
            f"{missing:.1%} of the answers in the loss do not end in a stop token, above "
            f"data.audit.max_stop_missing_share={limits.max_stop_missing_share}: the model would "
            "not learn to end; fix the base's chat template"
        )
    differs = _failed_share(checks, "prefix_matches")
    if differs > limits.max_prefix_differs_share:
        yield (
            f"the training ids of {differs:.1%} of the checked rows do not begin with their "
            "generation prompt, above data.audit.max_prefix_differs_share="
            f"{limits.max_prefix_differs_share}: the chat template joins prompt and answer without "
            "a token between them"
        )
    share = train.num_loss_tokens / max(1, train.num_tokens)
    if share < limits.min_trained_share:
        yield (
            f"only {share:.2%} of the tokens enter the loss, below data.audit.min_trained_share="
            f"{limits.min_trained_share}"
        )
    too_long = (counts.get("too_long", 0) + counts.get("shortened", 0)) / max(1, counts["read"])
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


def _failed_share(checks: Mapping[str, int], name: str) -> float:
    return checks.get(f"{name}_failed", 0) / max(1, checks.get(f"{name}_checked", 0))
