"""Recipe section `lora`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.schema.section import Section

TARGET_PRESETS = {
    "qv": ["q_proj", "v_proj"],
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
"""Module names of each preset of `lora.targets`. `all-linear` is not here: its names depend on the
base.
"""


class LoraConfig(Section):
    """The adapter. A layer computes W0 x + scale B A x, with scale = alpha / r, or alpha / sqrt(r)
    with rslora.
    """

    r: int = Field(
        default=8, ge=1, le=1024, description="Rank of the adapter: the number of rows of A."
    )
    alpha: float = Field(
        default=16, gt=0, description="Scale of the adapter before the division by the rank."
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Probability with which an input of A is zeroed in training.",
    )
    targets: Literal["qv", "attention", "all-linear"] | list[str] = Field(
        default="all-linear",
        description="The modules that get an adapter: a preset, or module names such as "
        "[q_proj, v_proj].",
    )
    rslora: bool = Field(
        default=False, description="Rank-stabilised LoRA: divide alpha by sqrt(r), not by r."
    )
    dora: bool = Field(
        default=False,
        description="DoRA: train the norm of each output's weights separately from their "
        "direction.",
    )
    init: Literal["zero", "pissa", "loftq", "eva"] = Field(
        default="zero",
        description="How A and B start: zero sets B to 0; pissa takes the base's first singular "
        "vectors; "
        "loftq corrects the rounding of nf4; eva takes the singular vectors of the data's "
        "activations.",
    )
    lr_ratio: float = Field(
        default=1.0,
        gt=0,
        description="LoRA+: learning rate of B divided by that of A; the paper recommends 16.",
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict,
        description="Another rank for some modules: a module name or regular expression, and its "
        "rank.",
    )
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict,
        description="Another alpha for some modules: a module name or regular expression, and its "
        "alpha.",
    )
    modules_to_save: list[str] = Field(
        default_factory=list,
        description="Modules whose full weights are trained and saved with the adapter, such as "
        "lm_head.",
    )
