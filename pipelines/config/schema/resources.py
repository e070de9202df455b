"""Recipe section `resources`."""

from __future__ import annotations

from pydantic import Field, field_validator

from pipelines.config.schema.section import Section


class ResourcesConfig(Section):
    """The CPUs and GPUs that the stages take from the Ray cluster."""

    workers: int | list[int] = Field(
        default=1,
        description="Training workers, one process each; [min, max] lets the number follow the "
        "cluster.",
    )
    resize_every_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds between two looks for more workers, if workers is [min, max].",
    )
    cpus_per_worker: float = Field(default=1.0, ge=0, description="CPUs of one training worker.")
    gpus_per_worker: float = Field(
        default=0.0,
        ge=0,
        description="GPUs of one training or evaluation worker; 0 runs on the CPU.",
    )
    data_cpus: float = Field(
        default=1.0, gt=0, description="CPUs of one data task or evaluation process."
    )
    serve_cpus: float = Field(default=1.0, ge=0, description="CPUs of one serving replica.")
    serve_gpus: float = Field(
        default=0.0, ge=0, description="GPUs of one serving replica; 0 serves on the CPU."
    )

    @field_validator("workers")
    @classmethod
    def _ordered(cls, value: int | list[int]) -> int | list[int]:
        given = [value, value] if isinstance(value, int) else value
        if len(given) != 2 or not 1 <= given[0] <= given[1]:
            raise ValueError(
                "expected a number of workers from 1, or [min, max] with 1 <= min <= max"
            )
        return value

    @property
    def min_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]
