"""Recipe section `registry`."""

from __future__ import annotations

from pydantic import Field

from pipelines.config.schema.section import Section
from pipelines.core.identifiers import ALIAS_NAME, MODEL_NAME


class RegistryConfig(Section):
    """The registry entry of a promoted adapter."""

    model: str = Field(
        pattern=f"^{MODEL_NAME}$",
        description="Name of the adapter in the registry and in the API; the recipe's name if it "
        "is not "
        "given.",
    )
    alias: str = Field(
        default="production",
        pattern=f"^{ALIAS_NAME}$",
        description="The alias that `promote` moves and `serve` follows.",
    )
