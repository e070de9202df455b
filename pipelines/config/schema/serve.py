"""Recipe section `serve`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.schema.section import Section


class ServeConfig(Section):
    """The HTTP endpoint: where it listens, which models it offers, and its limits."""

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; 0.0.0.0 accepts requests from other machines.",
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes any free port."
    )
    path: str = Field(
        default="/",
        pattern=r"^/([A-Za-z0-9._-]+)?$",
        description="Path of the API; each endpoint of a cluster needs its own.",
    )
    base_name: str = Field(
        default="",
        description="Name of the base in the API; empty takes the last part of model.base.",
    )
    models: list[str] = Field(
        default_factory=list,
        description="Registry names to serve as adapters; empty serves every adapter of this base.",
    )
    merged: list[str] = Field(
        default_factory=list,
        description="Registry names to serve from a merged copy of the base, as NAME-merged.",
    )
    max_batch: int = Field(
        default=16, ge=1, description="Requests that one replica decodes together."
    )
    max_queued: int = Field(
        default=256,
        ge=1,
        description="Requests that may wait for a replica; further ones are answered with 429.",
    )
    max_adapters: int = Field(
        default=32, ge=1, description="Adapters that one replica keeps in memory."
    )
    max_model_tokens: int = Field(
        default=1024, ge=16, description="Longest prompt and answer together, in tokens."
    )
    replicas: int = Field(default=1, ge=1, description="Copies of the base that share the load.")
    engine: Literal["transformers", "vllm"] | None = Field(
        default=None,
        description="The engine that will serve the adapter; a recipe whose adapter it cannot "
        "serve is "
        "refused. `loraforge serve` runs transformers; vllm means a server of your own.",
    )
