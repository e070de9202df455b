"""Keys that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.config.schema import (
    RESERVED_VARIABLES,
    DataConfig,
    LoraConfig,
    ModelConfig,
    TrainConfig,
)

VOCABULARY_MODULES = (
    "embed_tokens",
    "embed_in",
    "embed_out",
    "embeddings",
    "embedding",
    "lm_head",
    "output_layer",
    "tok_embeddings",
    "word_embeddings",
    "wte",
)
"""The names of input embeddings and heads in transformers' architectures."""


def contradictions(
    model: ModelConfig, lora: LoraConfig, train: TrainConfig, data: DataConfig
) -> Iterator[str]:
    """One line for each pair of keys that cannot be combined: the values, the reason, and a value
    to set.
    """
    batch, micro, quantized = train.global_batch, train.micro_batch, model.quantization
    if batch % micro:
        yield (
            f"train.global_batch={batch} is not a multiple of train.micro_batch={micro}: "
            "set global_batch to a multiple"
        )
    if quantized != "none" and (train.zero == 3 or train.offload == "parameters"):
        bits = {"nf4": "4-bit", "int8": "8-bit", "fp8": "float8"}[quantized]
        given = "train.zero=3 splits" if train.zero == 3 else "train.offload=parameters moves"
        yield (
            f"{given} the base's weights, which {bits} weights do not support: "
            "set train.zero=2 and train.offload=none"
        )
    if train.offload == "parameters" and train.zero not in (3, "auto"):
        yield (
            "train.offload=parameters needs the weights split over the workers: "
            f"set train.zero=3 (given: {train.zero})"
        )
    if train.offload == "optimizer" and train.zero == 0:
        yield (
            "train.offload=optimizer needs a split optimizer: set train.zero=1, 2 or 3 (given: 0)"
        )
    if train.optimizer != "adamw" and train.zero == 3:
        yield (
            "train.zero=3 empties the optimizer's list of weights between steps, by which "
            f"train.optimizer={train.optimizer} finds its moments: "
            "set train.zero=0, 1 or 2, or train.optimizer=adamw"
        )
    if train.optimizer != "adamw" and train.offload not in ("none", "auto"):
        yield (
            f"train.offload={train.offload} steps in CPU memory, and "
            f"train.optimizer={train.optimizer} is made for the GPU's: "
            "set train.offload=none, or train.optimizer=adamw"
        )
    if train.method == "lora":
        yield from _target_contradictions(lora)
    if lora.init == "loftq" and quantized != "nf4":
        yield (
            f"lora.init=loftq corrects nf4's rounding: "
            f"set model.quantization=nf4 (given: {quantized})"
        )
    if lora.init == "pissa" and quantized != "none":
        yield (
            f"lora.init=pissa changes the base's weights: "
            f"set model.quantization=none (given: {quantized})"
        )
    in_float8 = [
        name for name in lora.modules_to_save if name not in ("lm_head", "embed_tokens", "norm")
    ]
    if in_float8 and quantized == "fp8":
        yield (
            f"lora.modules_to_save={in_float8!r} trains weights that model.quantization=fp8 "
            "stores in float8: set model.quantization=none"
        )
    if lora.dora and quantized == "fp8":
        yield (
            "lora.dora=true reads the base's weights, which model.quantization=fp8 hides: "
            "set model.quantization=none"
        )
    if lora.dora and lora.init in ("pissa", "loftq"):
        yield (
            f"lora.dora=true keeps the base's norms, which lora.init={lora.init} changes: "
            "set one of the two"
        )
    if train.method == "full" and quantized != "none":
        yield (
            f"train.method=full trains the base's weights: "
            f"set model.quantization=none (given: {quantized})"
        )
    yield from _template_contradictions(data)


def _template_contradictions(data: DataConfig) -> Iterator[str]:
    for name, value in data.template_arguments.items():
        given = f"data.template_arguments.{name}"
        if name in RESERVED_VARIABLES:
            yield f"{given} is set by the renderer for every conversation: leave it out"
        if isinstance(value, str) and value.lower() in ("true", "false"):
            yield (
                f"{given}={value!r} is a text, which a template does not read as true or false: "
                f"set {value.lower()} without quotes"
            )


def _target_contradictions(lora: LoraConfig) -> Iterator[str]:
    targets = [] if isinstance(lora.targets, str) else lora.targets
    vocabulary = [name for name in targets if name.rsplit(".", 1)[-1] in VOCABULARY_MODULES]
    if vocabulary:
        yield (
            f"lora.targets={lora.targets!r} adapts the embeddings or the head, and an adapter of "
            f"those cannot be loaded for evaluation and serving: leave {', '.join(vocabulary)} out"
        )
