"""Limits of a base that the rows of a dataset must keep: token ids and positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.schema import ModelConfig
from pipelines.core.errors import UserError
from pipelines.model.published import PublishedBase, published_base
from pipelines.packed.reader import RowReader


@dataclass(frozen=True)
class BaseLimits:
    """The number of a base's embeddings and of the positions that it knows; None if unlimited."""

    base: str
    num_embeddings: int | None
    num_positions: int | None

    def check(self, max_id: int, longest: int, name: str) -> None:
        """Raise UserError for a token id or a sample's length beyond the limits.

        `name` says which rows have the largest id `max_id` and the longest sample.
        """
        if self.num_embeddings is not None and max_id >= self.num_embeddings:
            raise UserError(
                f"{name}: token id {max_id} is beyond the {self.num_embeddings} embeddings of "
                f"model.base={self.base}, so its tokenizer has tokens that the base has not: use "
                "the tokenizer of the base, or a base whose embeddings were resized"
            )
        if self.num_positions is not None and longest > self.num_positions:
            raise UserError(
                f"{name}: a sample has {longest} tokens, and model.base={self.base} knows "
                f"{self.num_positions} positions (max_position_embeddings): set "
                f"data.row_tokens={self.num_positions} or less"
            )


def read_base_limits(model: ModelConfig) -> BaseLimits:
    """The limits in the base's config.json. Loads neither weights nor torch."""
    base = published_base(model)
    values = {**base.values, **(base.values.get("text_config") or {})}
    positions = PublishedBase(base.name, values).max_tokens
    return BaseLimits(
        model.base, values.get("vocab_size"), _scaled_positions(positions, values) or None
    )


def check_rows(model: ModelConfig, folder: Path) -> None:
    """Raise UserError if the rows of the prepared dataset in `folder` exceed the base's limits."""
    limits = read_base_limits(model)
    for split in ("train", "heldout"):
        reader = RowReader(folder, split)
        if reader.num_rows:
            longest = int(reader.sample_lengths()[0].max())
            limits.check(reader.max_id(), longest, f"{folder} ({split})")


def _scaled_positions(positions: int | None, config: Mapping[str, Any]) -> int:
    """The positions with rotary scaling, for a maximum that is given without it."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factors = [1.0]
    for rope in (scaling, *(each for each in scaling.values() if isinstance(each, dict))):
        original = rope.get("original_max_position_embeddings")
        if rope.get("factor") and positions and (not original or original >= positions):
            factors.append(float(rope["factor"]))
    return int((positions or 0) * max(factors))
