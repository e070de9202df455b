"""The nouns handed between stages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipelines.core.digests import canonical_json, short

T = TypeVar("T")


@dataclass(frozen=True)
class ArtifactRef:
    """Where a finished artifact lies and what it was made from.

    `key` is the digest of the inputs (it names the folder and tells whether the work is already done); `digest` is the
    digest of what came out (kind, parents and every file's sha256); `parents` maps a role to a parent's digest.
    """

    kind: str
    key: str
    digest: str
    uri: str
    parents: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return short(self.digest)


@dataclass(frozen=True)
class SplitStats:
    """What one split of a prepared dataset holds; `num_rows` counts packs, `num_loss_tokens` unmasked labels."""

    num_samples: int
    num_rows: int
    num_tokens: int
    num_loss_tokens: int

    def fill(self, row_tokens: int) -> float:
        """Share of the packs' positions that hold a real token, 0..1."""
        return self.num_tokens / (self.num_rows * row_tokens) if self.num_rows else 0.0


@dataclass(frozen=True)
class PreparedDataset:
    """Packed, masked Parquet: `train.parquet`/`heldout.parquet` shards and `heldout_samples` for generation."""

    ref: ArtifactRef
    row_tokens: int
    train: SplitStats
    heldout: SplitStats
    counts: Mapping[str, int]
    tokenizer_digest: str
    template_digest: str


@dataclass(frozen=True)
class Checkpoint:
    """A verified adapter with what training needs to go on from it. `metrics` are those of its step."""

    ref: ArtifactRef
    run_id: str
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainingRun:
    """A finished run: its kept checkpoints, best first by held-out loss, and the folder with its logs."""

    ref: ArtifactRef
    run_id: str
    num_steps: int
    checkpoints: tuple[Checkpoint, ...]
    metrics: Mapping[str, float]

    @property
    def best(self) -> Checkpoint:
        return self.checkpoints[0]


@dataclass(frozen=True)
class Answer:
    """One held-out prompt with the reference and what a candidate generated for it."""

    sample_id: str
    prompt: str
    reference: str
    generated: str
    exact: bool


@dataclass(frozen=True)
class Score:
    """A candidate's held-out results. `candidate` is "base" or a checkpoint's digest; `exact_match` is a share 0..1.
    `error` says why it could not be scored; its numbers are NaN then, and it can never be promoted."""

    candidate: str
    label: str
    heldout_loss: float
    exact_match: float
    num_samples: int
    num_loss_tokens: int
    answers: tuple[Answer, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class EvalReport:
    """Scores of the base (always first) and of each candidate on one frozen held-out set."""

    ref: ArtifactRef
    scores: tuple[Score, ...]
    heldout_digest: str

    @property
    def base(self) -> Score:
        return self.scores[0]


@dataclass(frozen=True)
class GateDecision:
    """Whether a candidate may be promoted, and the numbers that decided it in words."""

    passed: bool
    candidate: str
    metric: str
    reason: str


@dataclass(frozen=True)
class ModelVersion:
    """An immutable registry entry `name@digest12`: an adapter, its base and the digests it descends from."""

    name: str
    digest: str
    adapter_uri: str
    base: str
    base_fingerprint: str
    lineage: Mapping[str, str]
    metrics: Mapping[str, float]
    created: str

    @property
    def id(self) -> str:
        return f"{self.name}@{short(self.digest)}"


@dataclass(frozen=True)
class Alias:
    """A movable name `model:alias`. `revision` counts its moves from 1; a move names the revision it replaces."""

    model: str
    alias: str
    version_id: str
    revision: int


@dataclass(frozen=True)
class AliasMove:
    """One entry of an alias's history: where it went, by "promote" or "rollback", why, and when (ISO 8601, UTC)."""

    alias: Alias
    action: str
    reason: str
    created: str


@dataclass(frozen=True)
class Endpoint:
    """A live OpenAI-compatible HTTP server and the model names that it answers to."""

    url: str
    models: tuple[str, ...]


def to_json(noun: Any) -> dict[str, Any]:
    """A noun as plain JSON values; `from_json` is its inverse."""
    return json.loads(canonical_json(noun))


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """Rebuild a noun from `to_json`'s output, nested nouns and tuples included. Raises TypeError on missing fields."""
    hints = _hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(
        **{name: _revive(hints[name], value) for name, value in data.items() if name in known}
    )


def _hints(cls: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls)


def _revive(hint: Any, value: Any) -> Any:
    import typing

    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_revive(item, v) for v in value)
    return value
