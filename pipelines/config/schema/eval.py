"""Recipe section `eval`."""

from __future__ import annotations

from pydantic import Field

from pipelines.config.schema.section import Section


class EvalConfig(Section):
    """Scoring of the base and the checkpoints on the held-out rows."""

    max_samples: int = Field(
        default=64,
        ge=1,
        description="Held-out prompts that are answered; the held-out loss always counts all rows.",
    )
    max_new_tokens: int = Field(default=128, ge=1, description="Longest answer, in tokens.")
    batch_size: int = Field(default=32, ge=1, description="Prompts that are answered together.")
    actors: int = Field(
        default=1,
        ge=1,
        description="Processes that load the base and share the work; the scores do not depend on "
        "it.",
    )
