"""The sections of a recipe: every key with its default, its bounds and, where the name does not say it, its meaning."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


def _choices(kind: Any) -> set[Any]:
    """The values that a Literal allows, also within an alternative; of any other kind, its types."""
    parts = get_args(kind)
    return set[Any]().union(*map(_choices, parts)) if parts else {kind}


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _words(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads a bare on or off as true or false; where a key's choices hold one of the two, the word was meant."""
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field and {"on", "off"} & _choices(field.annotation):
            return "on" if value else "off"
        return value


class ModelConfig(Section):
    """The frozen base."""

    base: str = Field(description="folder with config.json and safetensors, or a Hub id")
    revision: str | None = Field(default=None, description="Hub revision; leave empty for a folder")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 on a GPU, fp32 on CPU"
    )
    quantization: Literal["none", "nf4", "int8", "fp8"] = Field(
        default="none",
        description="nf4: QLoRA; int8: LLM.int8(); fp8: float8 matrix products, the fastest on Hopper GPUs",
    )
    double_quantization: bool = Field(default=True, description="nf4: quantize the quantization constants too")
    compute_dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="nf4: auto is model.dtype"
    )
    storage_dtype: Literal["auto", "uint8", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="nf4: how the packed weights are held; auto is model.dtype"
    )


class LoraConfig(Section):
    """The adapter: W0 x + scale B A x with scale = alpha / r, or alpha / sqrt(r) with rslora."""

    r: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["qv", "attention", "all-linear"] | list[str] = Field(
        default="all-linear", description="a preset or module names such as [q_proj, v_proj]"
    )
    rslora: bool = Field(default=False, description="rank-stabilised scale")
    dora: bool = Field(default=False, description="train the weights' magnitude apart from their direction")
    init: Literal["zero", "pissa", "loftq", "eva"] = Field(
        default="zero",
        description="zero: B = 0; pissa: the base's first singular vectors; loftq: nf4's error; eva: the data's",
    )
    lr_ratio: float = Field(
        default=1.0, gt=0, description="LoRA+: learning rate of B over that of A; the paper's is 16"
    )
    rank_pattern: dict[str, int] = Field(default_factory=dict, description="module name or regex: r there")
    alpha_pattern: dict[str, float] = Field(default_factory=dict, description="module name or regex: alpha there")
    modules_to_save: list[str] = Field(default_factory=list, description="modules trained whole, such as lm_head")


class SourceConfig(Section):
    """Rows: a file, a folder, a glob, or the same behind `s3://`, `gs://`, `https://` or `hf://ORG/DATASET`."""

    path: str
    format: Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "question_answer"] = "auto"
    columns: dict[str, str] = Field(
        default_factory=dict, description="the format's key: the rows' own, for example {prompt: q, completion: a}"
    )
    split: Literal["auto", "train", "heldout"] = Field(
        default="auto", description="auto: by content hash, see heldout_share"
    )
    weight: float = Field(
        default=1.0, ge=0, le=1000, description="2: every row twice; 0.5: every second row, by content hash"
    )


class AuditConfig(Section):
    """What is wrong beyond these makes `inspect` exit with 1 and keeps `train` from starting. Changing them prepares nothing
    anew.
    """

    min_fill: float = Field(default=0.8, ge=0, le=1, description="share of the packs' positions that hold a token")
    min_trained_share: float = Field(default=0.005, ge=0, le=1, description="trained tokens of all tokens")
    max_lost_share: float = Field(
        default=0.2, ge=0, le=1, description="rows too long for a pack, left out or shortened"
    )
    max_prefix_differs_share: float = Field(
        default=0.01, ge=0, le=1, description="rows whose training ids do not begin with their generation prompt"
    )
    max_stop_missing_share: float = Field(
        default=0.0, ge=0, le=1, description="trained turns that do not end in a stop token"
    )


class DataConfig(Section):
    """The rows, how they are cut and packed, and what is kept out."""

    sources: list[SourceConfig] = Field(min_length=1)
    heldout_share: float = Field(default=0.05, ge=0, le=0.5, description="of rows whose source has split: auto")
    row_tokens: int = Field(default=2048, ge=16, description="length of one pack")
    train_on: Literal["all", "last"] = Field(default="all", description="last: only the last answer of a conversation")
    too_long: Literal["drop", "truncate", "split"] = Field(
        default="drop", description="truncate: leave out the oldest turns; split: into conversations that fit"
    )
    duplicates: Literal["drop", "keep"] = Field(
        default="drop", description="rows of the same content; use a source's weight to repeat"
    )
    near_duplicates: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="drop a row as similar as this (Jaccard of 5-character shingles) to an earlier one",
    )
    leakage: Literal["error", "drop", "allow"] = Field(
        default="error", description="a training row whose question is also held out or in a benchmark"
    )
    benchmarks: list[str] = Field(default_factory=list, description="files of rows that training must not hold")
    keep: list[str] = Field(default_factory=list, description="expressions that a row must fulfil: answer_chars >= 2")
    max_rejects_share: float = Field(default=0.01, ge=0, le=1, description="fail above this share of unreadable rows")
    fast_tokenizer: bool = Field(default=True, description="use fastokens where it encodes alike")
    audit: AuditConfig = AuditConfig()
    seed: int = 0
    workers: int | None = Field(
        default=None, ge=1, description="preparing tasks at a time; empty: as many as the CPUs allow"
    )

    @model_validator(mode="before")
    @classmethod
    def _source_strings(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("sources"), str):
            data = {**data, "sources": [data["sources"]]}
        if isinstance(data, dict) and isinstance(data.get("sources"), list):
            data = {**data, "sources": [{"path": s} if isinstance(s, str) else s for s in data["sources"]]}
        return data


class TrainConfig(Section):
    """One optimizer step sees `global_batch` packs over all workers, `micro_batch` of them in one forward."""

    method: Literal["lora", "full"] = Field(
        default="lora", description="full: every weight of the base trains, no adapter"
    )
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="stop earlier than the epochs say")
    global_batch: int = Field(default=8, ge=1, description="packs a step over all workers")
    micro_batch: int = Field(default=1, ge=1, description="packs a forward")
    lr: float = Field(default=2e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = Field(
        default="adamw", description="8-bit moments; paged: moments that move to the CPU under pressure (GPU only)"
    )
    zero: Literal["auto", 0, 1, 2, 3] = Field(default=2, description="auto: the lowest stage that fits the memory plan")
    offload: Literal["auto", "none", "optimizer", "parameters"] = Field(default="none", description="to CPU memory")
    gradient_checkpointing: Literal["auto", "off", "selective", "full"] = Field(
        default="off", description="recompute: no layer, every second one, every one; auto: as little as fits"
    )
    fused: Literal["auto", "on", "off"] = Field(
        default="auto", description="hand-written layers: auto: on a GPU where the model fits them; on: or fail"
    )
    save_every: int = Field(default=50, ge=1, description="steps between checkpoints; the last step is always saved")
    keep: int = Field(default=2, ge=1, description="checkpoints kept, best held-out loss first")
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many checkpoints without a better held-out loss"
    )
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="what a loss or gradient that is not finite does"
    )
    max_failures: int = Field(default=3, ge=0, description="worker deaths survived before the run is given up")
    max_preemptions: int = Field(default=-1, ge=-1, description="announced losses of a node survived; -1: any number")
    hang_timeout_s: float = Field(
        default=900.0, gt=0, description="a step that takes longer is hung: its worker is restarted"
    )
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    record_samples: bool = Field(default=False, description="write down which samples each step saw")
    seed: int = 0


class EvalConfig(Section):
    """How candidates are scored on the held-out set."""

    max_samples: int = Field(default=64, ge=1, description="held-out samples that are answered; the loss is over all")
    max_new_tokens: int = Field(default=128, ge=1)
    batch_size: int = Field(default=32, ge=1, description="prompts generated together")
    actors: int = Field(default=1, ge=1, description="processes that load the base and share the work")


class GateConfig(Section):
    """A candidate passes when it beats the base by `margin` on `metric`."""

    metric: Literal["heldout_loss", "exact_match"] = "heldout_loss"
    margin: float = Field(
        default=0.01, ge=0, description="loss: share of the base's loss; exact match: difference of shares"
    )


class RegistryConfig(Section):
    """Where a promoted adapter goes."""

    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="name in the registry")
    alias: str = Field(default="production", pattern=r"^[a-z][a-z0-9-]{0,31}$")


class ServeConfig(Section):
    """The HTTP endpoint and what it serves."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0: any free port")
    path: str = Field(
        default="/",
        pattern=r"^/([A-Za-z0-9._-]+)?$",
        description="where the API lies; each endpoint of a cluster its own",
    )
    base_name: str = Field(default="", description="name of the base in the API; empty: the last part of model.base")
    models: list[str] = Field(
        default_factory=list, description="registry names served as adapters; empty: every one made on this base"
    )
    merged: list[str] = Field(
        default_factory=list, description="registry names served from a merged copy as NAME-merged"
    )
    max_batch: int = Field(default=16, ge=1, description="requests decoded together by one replica")
    max_queued: int = Field(default=256, ge=1, description="requests that wait for a replica; more are answered 429")
    max_adapters: int = Field(default=32, ge=1, description="adapters in the memory of one replica")
    max_model_tokens: int = Field(default=1024, ge=16, description="prompt and answer together")
    replicas: int = Field(default=1, ge=1)
    engine: Literal["transformers", "vllm"] | None = Field(
        default=None,
        description="what will serve the adapter, so that one that it cannot serve is refused before it is trained; "
        "`loraforge serve` itself runs transformers, vllm is one of your own",
    )


class ResourcesConfig(Section):
    """What the run takes from the Ray cluster."""

    workers: int | list[int] = Field(default=1, description="training workers, one process each; [min, max]: elastic")
    resize_every_s: float = Field(default=60.0, gt=0, description="elastic: how often a run looks for more workers")
    cpus_per_worker: float = Field(default=1.0, ge=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    data_cpus: float = Field(default=1.0, gt=0, description="CPUs of one data or evaluation task")
    serve_cpus: float = Field(default=1.0, ge=0)
    serve_gpus: float = Field(default=0.0, ge=0)

    @field_validator("workers")
    @classmethod
    def _ordered(cls, value: int | list[int]) -> int | list[int]:
        given = [value, value] if isinstance(value, int) else value
        if len(given) != 2 or not 1 <= given[0] <= given[1]:
            raise ValueError("expected a number of workers from 1, or [min, max] with 1 <= min <= max")
        return value

    @property
    def min_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]
