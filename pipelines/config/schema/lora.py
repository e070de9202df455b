"""Recipe section `lora`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.schema.section import Section


class LoraConfig(Section):
    """The adapter: W0 x + scale B A x with scale = alpha / r, or alpha / sqrt(r) with rslora."""

    r: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["qv", "attention", "all-linear"] | list[str] = Field(
        default="all-linear", description="a preset or module names such as [q_proj, v_proj]"
    )
    rslora: bool = Field(default=False, description="rank-stabilised scale")
    dora: bool = Field(
        default=False, description="train the weights' magnitude apart from their direction"
    )
    init: Literal["zero", "pissa", "loftq", "eva"] = Field(
        default="zero",
        description="zero: B = 0; pissa: the base's first singular vectors; loftq: nf4's error; eva: the data's",
    )
    lr_ratio: float = Field(
        default=1.0, gt=0, description="LoRA+: learning rate of B over that of A; the paper's is 16"
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict, description="module name or regex: r there"
    )
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict, description="module name or regex: alpha there"
    )
    modules_to_save: list[str] = Field(
        default_factory=list, description="modules trained whole, such as lm_head"
    )
