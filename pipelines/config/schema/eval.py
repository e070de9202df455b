"""Recipe section `eval`."""

from __future__ import annotations

from pydantic import Field

from pipelines.config.schema.section import Section


class EvalConfig(Section):
    """How candidates are scored on the held-out set."""

    max_samples: int = Field(
        default=64, ge=1, description="held-out samples that are answered; the loss is over all"
    )
    max_new_tokens: int = Field(default=128, ge=1)
    batch_size: int = Field(default=32, ge=1, description="prompts generated together")
    actors: int = Field(
        default=1, ge=1, description="processes that load the base and share the work"
    )
