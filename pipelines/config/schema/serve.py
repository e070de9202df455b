"""Recipe section `serve`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.schema.section import Section


class ServeConfig(Section):
    """The HTTP endpoint and what it serves."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0: any free port")
    path: str = Field(
        default="/",
        pattern=r"^/([A-Za-z0-9._-]+)?$",
        description="where the API lies; each endpoint of a cluster its own",
    )
    base_name: str = Field(
        default="", description="name of the base in the API; empty: the last part of model.base"
    )
    models: list[str] = Field(
        default_factory=list,
        description="registry names served as adapters; empty: every one made on this base",
    )
    merged: list[str] = Field(
        default_factory=list, description="registry names served from a merged copy as NAME-merged"
    )
    max_batch: int = Field(default=16, ge=1, description="requests decoded together by one replica")
    max_queued: int = Field(
        default=256, ge=1, description="requests that wait for a replica; more are answered 429"
    )
    max_adapters: int = Field(default=32, ge=1, description="adapters in the memory of one replica")
    max_model_tokens: int = Field(default=1024, ge=16, description="prompt and answer together")
    replicas: int = Field(default=1, ge=1)
    engine: Literal["transformers", "vllm"] | None = Field(
        default=None,
        description="what will serve the adapter, so that one that it cannot serve is refused before it is trained; "
        "`loraforge serve` itself runs transformers, vllm is one of your own",
    )
