"""Recipe section `data`."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.config.schema.section import Section

BUILT_IN_TEMPLATES = ("alpaca", "chatml", "inst")  # the names that data.chat_template knows
# Variables of chat templates that the renderer sets; no argument may replace one.
RESERVED_VARIABLES = frozenset(
    (
        "messages", "tools", "add_generation_prompt", "strftime_now", "raise_exception",
        "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    )
)  # fmt: skip


class SourceConfig(Section):
    """One entry of `data.sources`. A path alone is short for {path: PATH}."""

    path: str = Field(
        description="A file, a folder or a glob, relative to the recipe; or the same behind s3://, "
        "gs://, "
        "https:// or hf://ORG/DATASET."
    )
    format: Literal[
        "auto", "alpaca", "sharegpt", "messages", "prompt_completion", "question_answer", "text"
    ] = Field(default="auto", description="Format of the rows; auto reads it from a row's keys.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Renames columns: a key of the format, and the rows' own name for it, such as "
        "{prompt: q, completion: a}.",
    )
    roles: dict[str, Literal["user", "assistant", "system", "tool"]] = Field(
        default_factory=dict,
        description="Role names of the rows that are not known by themselves, such as "
        "{Patient: user, Doctor: assistant}.",
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="Delimiter of a CSV file; empty reads it from the header.",
    )
    encoding: str = Field(
        default="auto",
        description="Text encoding of the files, such as windows-1252; auto is UTF-8, or the "
        "encoding that a byte order mark names.",
    )
    field: str | None = Field(
        default=None,
        description="Key of the list of rows in a JSON file that is one object, such as data.",
    )
    split: Literal["auto", "train", "heldout"] = Field(
        default="auto",
        description="Where the rows go; auto holds out data.heldout_share of them, by content "
        "hash.",
    )
    weight: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="How often a row is used: 2 takes every row twice, 0.5 takes half of the rows, "
        "by content hash.",
    )


class AuditConfig(Section):
    """Thresholds of the dataset audit. Crossing one makes `loraforge inspect` exit 1 and blocks
    training.

    They are not part of the dataset's key: changing them does not re-prepare data.
    """

    min_fill: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Least share of positions in the packed rows that hold a token.",
    )
    min_trained_share: float = Field(
        default=0.005, ge=0, le=1, description="Least share of tokens that the loss counts."
    )
    max_lost_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Largest share of rows dropped or shortened because they exceed "
        "data.row_tokens.",
    )
    max_prefix_differs_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Largest share of answers that do not stand directly behind the generation "
        "prompt that serving sends, or lack the thought that it asks for.",
    )
    max_stop_missing_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Largest share of assistant turns in the loss that do not end in a stop token.",
    )
    max_typed_share: float = Field(
        default=0.49,
        ge=0,
        le=1,
        description="Largest share of rows with text of a chat template: answers that end in a "
        "control token's text, or messages that have a template around them already.",
    )


class UnusedKeysConfig(Section):
    """Keys of rows that nothing reads."""

    allow: list[str] = Field(
        default_factory=list,
        description="Keys that may be left out although they mean something elsewhere, such as "
        "label or chosen.",
    )


class DataConfig(Section):
    """The rows: where they are, which are used, and how they are packed."""

    sources: list[SourceConfig] = Field(
        min_length=1, description="The files with rows; a list of paths or of entries as below."
    )
    heldout_share: float = Field(
        default=0.05,
        ge=0,
        le=0.5,
        description="Share of the rows of sources with split: auto that is never trained on and "
        "scores the "
        "adapter.",
    )
    row_tokens: int = Field(
        default=2048,
        ge=16,
        description="Length of a packed row in tokens; one row holds several conversations.",
    )
    train_on: Literal["all", "last"] = Field(
        default="all",
        description="Which answers of a conversation the loss counts: all of them, or the last one "
        "only.",
    )
    too_long: Literal["drop", "truncate", "split"] = Field(
        default="drop",
        description="A conversation longer than row_tokens: drop it, truncate its oldest turns, or "
        "split it into several that fit. Of plain text, truncate takes the first row_tokens.",
    )
    duplicates: Literal["drop", "keep"] = Field(
        default="drop",
        description="Rows of equal content; to repeat rows on purpose, set a source's weight.",
    )
    near_duplicates: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Drop a row whose Jaccard similarity (shingles of 5 characters) to an earlier "
        "row "
        "reaches this value.",
    )
    leakage: Literal["error", "drop", "allow"] = Field(
        default="error",
        description="A training row whose question is also held out or in a benchmark.",
    )
    benchmarks: list[str] = Field(
        default_factory=list,
        description="Files of benchmark rows; training rows that ask the same count as leakage.",
    )
    keep: list[str] = Field(
        default_factory=list,
        description="Expressions that every row must fulfil, such as answer_chars >= 2.",
    )
    unused_keys: UnusedKeysConfig = Field(
        default=UnusedKeysConfig(),
        description="Keys of rows that nothing reads: those that mean something elsewhere block "
        "training unless they are allowed here.",
    )
    chat_template: str | None = Field(
        default=None,
        description="A file with a chat template (Jinja), relative to the recipe, or the name of a "
        "built-in one (chatml, alpaca, inst); empty takes the base's own.",
    )
    template_arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="Variables given to the chat template in training and serving, such as "
        "{enable_thinking: false}.",
    )
    max_rejects_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Preparing fails if a larger share of the rows cannot be read.",
    )
    fast_tokenizer: bool = Field(
        default=True,
        description="Encode with the fastokens library if it gives the same ids as tokenizers.",
    )
    audit: AuditConfig = Field(
        default=AuditConfig(), description="Thresholds of the dataset audit."
    )
    seed: int = Field(
        default=0,
        description="Seed of the held-out split, of fractional weights and of the packing.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Preparing tasks that run at the same time; empty allows as many as there are "
        "CPUs.",
    )

    @field_validator("template_arguments", mode="before")
    @classmethod
    def _dates_as_text(cls, value: Any) -> Any:
        """YAML reads 2025-06-30 without quotes as a date."""
        if not isinstance(value, dict):
            return value
        return {k: v.isoformat() if isinstance(v, date) else v for k, v in value.items()}

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
