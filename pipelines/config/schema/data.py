"""Recipe section `data`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.config.schema.section import Section


class SourceConfig(Section):
    """Rows: a file, a folder, a glob, or the same behind `s3://`, `gs://`, `https://` or `hf://ORG/DATASET`."""

    path: str
    format: Literal[
        "auto", "alpaca", "sharegpt", "messages", "prompt_completion", "question_answer"
    ] = "auto"
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="the format's key: the rows' own, for example {prompt: q, completion: a}",
    )
    split: Literal["auto", "train", "heldout"] = Field(
        default="auto", description="auto: by content hash, see heldout_share"
    )
    weight: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="2: every row twice; 0.5: every second row, by content hash",
    )


class AuditConfig(Section):
    """What is wrong beyond these makes `inspect` exit with 1 and keeps `train` from starting. Changing them prepares nothing
    anew.
    """

    min_fill: float = Field(
        default=0.8, ge=0, le=1, description="share of the packs' positions that hold a token"
    )
    min_trained_share: float = Field(
        default=0.005, ge=0, le=1, description="trained tokens of all tokens"
    )
    max_lost_share: float = Field(
        default=0.2, ge=0, le=1, description="rows too long for a pack, left out or shortened"
    )
    max_prefix_differs_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="rows whose training ids do not begin with their generation prompt",
    )
    max_stop_missing_share: float = Field(
        default=0.0, ge=0, le=1, description="trained turns that do not end in a stop token"
    )


class DataConfig(Section):
    """The rows, how they are cut and packed, and what is kept out."""

    sources: list[SourceConfig] = Field(min_length=1)
    heldout_share: float = Field(
        default=0.05, ge=0, le=0.5, description="of rows whose source has split: auto"
    )
    row_tokens: int = Field(default=2048, ge=16, description="length of one pack")
    train_on: Literal["all", "last"] = Field(
        default="all", description="last: only the last answer of a conversation"
    )
    too_long: Literal["drop", "truncate", "split"] = Field(
        default="drop",
        description="truncate: leave out the oldest turns; split: into conversations that fit",
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
        default="error",
        description="a training row whose question is also held out or in a benchmark",
    )
    benchmarks: list[str] = Field(
        default_factory=list, description="files of rows that training must not hold"
    )
    keep: list[str] = Field(
        default_factory=list, description="expressions that a row must fulfil: answer_chars >= 2"
    )
    max_rejects_share: float = Field(
        default=0.01, ge=0, le=1, description="fail above this share of unreadable rows"
    )
    fast_tokenizer: bool = Field(default=True, description="use fastokens where it encodes alike")
    audit: AuditConfig = AuditConfig()
    seed: int = 0
    workers: int | None = Field(
        default=None,
        ge=1,
        description="preparing tasks at a time; empty: as many as the CPUs allow",
    )

    @model_validator(mode="before")
    @classmethod
    def _source_strings(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("sources"), str):
            data = {**data, "sources": [data["sources"]]}
        if isinstance(data, dict) and isinstance(data.get("sources"), list):
            data = {
                **data,
                "sources": [{"path": s} if isinstance(s, str) else s for s in data["sources"]],
            }
        return data
