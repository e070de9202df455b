"""Recipe section `registry`."""

from __future__ import annotations

from pydantic import Field

from pipelines.config.schema.section import Section


class RegistryConfig(Section):
    """Where a promoted adapter goes."""

    model: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="name in the registry"
    )
    alias: str = Field(default="production", pattern=r"^[a-z][a-z0-9-]{0,31}$")
