"""Recipe section `model`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.schema.section import Section


class ModelConfig(Section):
    """The frozen base."""

    base: str = Field(description="folder with config.json and safetensors, or a Hub id")
    revision: str | None = Field(default=None, description="Hub revision; leave empty for a folder")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 on a GPU, fp32 on CPU"
    )
    quantization: Literal["none", "nf4", "int8", "fp8"] = Field(
        default="none",
        description="nf4: QLoRA; int8: LLM.int8(); fp8: float8 matrix products, the fastest on Hopper GPUs",
    )
    double_quantization: bool = Field(
        default=True, description="nf4: quantize the quantization constants too"
    )
    compute_dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="nf4: auto is model.dtype"
    )
    storage_dtype: Literal["auto", "uint8", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="nf4: how the packed weights are held; auto is model.dtype"
    )
