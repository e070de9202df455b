"""Recipe section `gate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.schema.section import Section


class GateConfig(Section):
    """A candidate passes if it beats the base by `margin` on `metric`."""

    metric: Literal["heldout_loss", "exact_match"] = Field(
        default="heldout_loss", description="The score that candidates are compared on."
    )
    margin: float = Field(
        default=0.01,
        ge=0,
        description="Least gain: for the loss a share of the rival's loss, for exact match a "
        "difference "
        "of shares.",
    )
