"""The frozen types that stages hand to each other.

A new field needs a default, so that JSON written by an older version stays readable: `from_json`
fills in the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.core.digests import digest_of, short


@dataclass(frozen=True)
class ArtifactRef:
    """Identity and location of a finished artifact.

    `key` is the digest of the artifact's inputs: it names the folder, and an artifact with the same
    key need not be built again. `digest` is the digest of the result (kind, parents and the sha256
    of every file). `parents` maps a role to a parent's digest.
    """

    kind: str
    key: str
    digest: str
    uri: str
    parents: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The artifact's id: its folder's name, which the terminal prints and commands take."""
        return short(self.key)


@dataclass(frozen=True)
class SplitStats:
    """Sizes of one split of a prepared dataset.

    `num_rows` counts packed rows, `num_loss_tokens` the label positions that enter the loss.
    """

    num_samples: int
    num_rows: int
    num_tokens: int
    num_loss_tokens: int

    def fill(self, row_tokens: int) -> float:
        """Share of the packed rows' positions that hold a token and not padding, 0..1."""
        return self.num_tokens / (self.num_rows * row_tokens) if self.num_rows else 0.0


@dataclass(frozen=True)
class TemplateChoice:
    """A chat template, and the variables that every render gives to it.

    `text` is Jinja source; None stands for the base's own template. `tool_text` is the template of
    conversations with tools, None where `text` renders these too.
    """

    text: str | None = None
    tool_text: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hex sha256 of the templates, without the arguments."""
        tools = {"tools": self.tool_text} if self.tool_text else {}
        return digest_of({"template": self.text} | tools)


@dataclass(frozen=True)
class PreparedDataset:
    """Packed Parquet shards of the train and held-out splits, and the held-out samples to score.

    `template` is the chat template that rendered them, its text included. `default_layout` names
    the built-in template that was used because the base has none, "" otherwise. `kind` is "text"
    for plain text, whose held-out samples have a loss but no question to answer.
    """

    ref: ArtifactRef
    row_tokens: int
    train: SplitStats
    heldout: SplitStats
    counts: Mapping[str, int]
    tokenizer_digest: str
    template_digest: str
    template: TemplateChoice = TemplateChoice()
    default_layout: str = ""
    kind: str = "conversations"


@dataclass(frozen=True)
class Checkpoint:
    """A verified adapter with the state to resume from; `metrics` belong to its step."""

    ref: ArtifactRef
    run_id: str
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainingRun:
    """A finished run with its remaining checkpoints, best held-out loss first, then the last one.

    `gpu_seconds` is the time of its steps times resources.workers times the GPUs of each; 0.0 on
    CPUs. `saved_bytes` counts the tensors of one checkpoint that serving loads.
    """

    ref: ArtifactRef
    run_id: str
    num_steps: int
    checkpoints: tuple[Checkpoint, ...]
    metrics: Mapping[str, float]
    gpu_seconds: float = 0.0
    num_trainable_parameters: int = 0
    saved_bytes: int = 0

    @property
    def best(self) -> Checkpoint:
        return self.checkpoints[0]


@dataclass(frozen=True)
class Answer:
    """One held-out prompt with its reference answer and the text that a candidate generated."""

    sample_id: str
    prompt: str
    reference: str
    generated: str
    exact: bool


@dataclass(frozen=True)
class Score:
    """A candidate's held-out results.

    `candidate` is "base" or a checkpoint's digest; `exact_match` is a share 0..1. A candidate that
    could not be scored has the reason in `error`, NaN as its numbers, and is never promoted.
    """

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
    """The gate's result for one candidate; `reason` has the numbers behind it in words.

    `candidate` is a checkpoint's digest, or "" when no candidate could be scored, and `version_id`
    the version registered from it. `incumbent` is the version that the alias named before, and
    `alias_revision` the alias's revision after the decision; "" and 0 where nothing was moved.
    `report` is the key of the EvalReport and `gate_set` the digest of the rows that decided. `ref`
    is None until the decision is stored.
    """

    passed: bool
    candidate: str
    metric: str
    reason: str
    version_id: str = ""
    incumbent: str = ""
    alias_revision: int = 0
    report: str = ""
    gate_set: str = ""
    ref: ArtifactRef | None = None


@dataclass(frozen=True)
class ModelVersion:
    """An immutable registry entry `name@digest12`: an adapter, its base and its ancestry.

    `lineage` maps a role to a digest (dataset, recipe, ...); `parents` maps a role to a version id
    or digest of another model that this one was made from (merge, resumed training). `engine` is
    the engine that gave the `metrics`. `quantization`, `dtype`, `template_digest` and
    `template_arguments` describe how the base was loaded and prompted. `row_ids_uri` is a file with
    the ids of the training rows, `canonical_uri` the adapter in canonical form next to the
    original. A field that is unknown is "" or empty.
    """

    name: str
    digest: str
    adapter_uri: str
    base: str
    base_fingerprint: str
    lineage: Mapping[str, str]
    metrics: Mapping[str, float]
    created: str
    parents: Mapping[str, str] = field(default_factory=dict)
    quantization: str = ""
    dtype: str = ""
    template_digest: str = ""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""
    row_ids_uri: str = ""
    canonical_uri: str = ""

    @property
    def id(self) -> str:
        return f"{self.name}@{short(self.digest)}"


@dataclass(frozen=True)
class Alias:
    """A movable name `model:alias` for a version.

    `revision` counts the moves from 1; a move names the revision that it replaces. `targets` are
    pairs of version id and weight that share the alias's requests; by default all of them go to
    `version_id`.
    """

    model: str
    alias: str
    version_id: str
    revision: int
    targets: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.targets:
            object.__setattr__(self, "targets", ((self.version_id, 1.0),))


@dataclass(frozen=True)
class AliasMove:
    """One entry of an alias's history: the alias after the move, who moved it, why and when.

    `action` is "promote" or "rollback", `created` a time in ISO 8601 (UTC). `decision` is the key
    of the GateDecision behind the move, "" without one; `override` is True when the move was made
    against that decision.
    """

    alias: Alias
    action: str
    reason: str
    created: str
    actor: str = ""
    decision: str = ""
    override: bool = False


@dataclass(frozen=True)
class Endpoint:
    """A running OpenAI-compatible HTTP server and the model names that it serves."""

    url: str
    models: tuple[str, ...]
