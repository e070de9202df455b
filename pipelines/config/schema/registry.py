"""Recipe section `registry`."""

from __future__ import annotations

from pydantic import Field

from pipelines.config.schema.section import Section


class RegistryConfig(Section):
    """Where a promoted adapter is registered."""

    model: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Name of the adapter in the registry and in the API; the recipe's name if it "
        "is not "
        "given.",
    )
    alias: str = Field(
        default="production",
        pattern=r"^[a-z][a-z0-9-]{0,31}$",
        description="The alias that `promote` moves and `serve` follows.",
    )
