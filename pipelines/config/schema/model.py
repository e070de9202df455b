"""Recipe section `model`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.schema.section import Section


class ModelConfig(Section):
    """The base model. Its weights are frozen, unless train.method is full."""

    base: str = Field(
        description="A folder with config.json and safetensors, relative to the recipe, or a Hub "
        "id such "
        "as org/name."
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a Hub id; leave it empty for a folder."
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Type of the weights; auto is bf16 on a GPU and fp32 on a CPU."
    )
    quantization: Literal["none", "nf4", "int8", "fp8"] = Field(
        default="none",
        description="How the frozen weights are stored: nf4 is QLoRA (4 bits), int8 is LLM.int8(), "
        "fp8 "
        "multiplies in float8, the fastest on Hopper GPUs.",
    )
    double_quantization: bool = Field(
        default=True, description="nf4 only: quantize the quantization constants as well."
    )
    compute_dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="nf4 only: type of the matrix products; auto is model.dtype."
    )
    storage_dtype: Literal["auto", "uint8", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="nf4 only: type of the tensors that hold the packed weights; auto is "
        "model.dtype.",
    )
