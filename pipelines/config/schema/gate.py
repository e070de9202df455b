"""Recipe section `gate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.schema.section import Section


class GateConfig(Section):
    """A candidate passes when it beats the base by `margin` on `metric`."""

    metric: Literal["heldout_loss", "exact_match"] = "heldout_loss"
    margin: float = Field(
        default=0.01,
        ge=0,
        description="loss: share of the base's loss; exact match: difference of shares",
    )
