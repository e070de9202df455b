"""The proof of a base on a GPU in bf16, NF4 and float8, with the fused layers, and its cost."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config.schema import LoraConfig
from pipelines.train.base_proof import BaseProof, prove_base
from pipelines.train.loss import PackedLoss
from tests.tiny_models import random_samples, tiny_model

pytestmark = pytest.mark.gpu

QUANTIZATIONS = ["none", "nf4", "fp8"]
SAMPLES = (200, 5, 130, 64, 33, 90)
LORA = LoraConfig(r=8, alpha=16)


def quantized(model: Any, quantization: str) -> Any:
    """The model on the GPU; its linears, except the head, as `model.quantization` makes them."""
    from pipelines.layers.fp8 import to_fp8

    model = model.to("cuda")
    if quantization == "fp8":
        to_fp8(model, model.lm_head)
    if quantization == "nf4":
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is torch.nn.Linear and child is not model.lm_head:
                    setattr(parent, name, nf4(child))
    return model


def nf4(linear: torch.nn.Linear) -> torch.nn.Module:
    import bitsandbytes.nn

    bnb: Any = bitsandbytes.nn
    has_bias = linear.bias is not None
    four_bit = bnb.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=has_bias,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
    )
    weight = linear.weight.data.cpu()
    four_bit.weight = bnb.Params4bit(weight, requires_grad=False, quant_type="nf4")
    if has_bias:
        four_bit.bias = torch.nn.Parameter(linear.bias.data, requires_grad=False)
    return four_bit.to("cuda")


def adapted(kind: str, quantization: str, dtype: str = "bfloat16", **values: Any) -> Any:
    """A tiny model with an adapter whose B is not zero, and with fused layers where they fit."""
    from pipelines.layers.decoder_layer import fuse
    from pipelines.model.lora import attach, trainable_parameters

    base = quantized(tiny_model(kind, dtype, **values), quantization)
    lora = LORA.model_copy(update={"targets": "attention"})
    model: Any = attach(base, lora, seed=0).train()
    generator = torch.Generator("cuda").manual_seed(1)
    for name, parameter in trainable_parameters(model).items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
        parameter.data = parameter.data.to(base.dtype)
    reason = fuse(model, True, "off")
    assert (reason == "") == (kind in ("llama", "qwen3")), reason
    return model


def proof_of(model: Any) -> BaseProof:
    proof = prove_base(PackedLoss(model), random_samples(SAMPLES))
    difference = proof.difference
    print(
        f"{proof}, block {difference.block:.1e} (limit {difference.block_limit:.1e}), "
        f"leak {proof.leak:.1e} (limit {proof.leak_limit:.1e})"
    )
    return proof


@pytest.fixture
def only_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed attention refuses sinks and windows itself; without that the proof alone decides."""
    monkeypatch.setattr("pipelines.layers.attention._check_arguments", lambda *_: None)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2"])
def test_a_base_that_is_computed_is_proven(kind: str, quantization: str) -> None:
    assert proof_of(adapted(kind, quantization)).holds


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_window_is_refused_exactly_where_a_sample_crosses_it(
    quantization: str, only_the_proof: None
) -> None:
    assert proof_of(adapted("gemma3_text", quantization, sliding_window=200)).holds
    proof = proof_of(adapted("gemma3_text", quantization, sliding_window=64))
    assert proof.difference.mean > proof.difference.limit and not proof.leaks


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_attention_sinks_are_refused(quantization: str, only_the_proof: None) -> None:
    proof = proof_of(adapted("gpt_oss", quantization))
    assert proof.difference.mean > proof.difference.limit and not proof.leaks


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_state_across_samples_is_refused(dtype: str) -> None:
    proof = prove_base(PackedLoss(tiny_model("lfm2", dtype, "cuda")), random_samples(SAMPLES))
    assert proof.leaks and not proof.holds


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fp32_and_fp16_are_proven(kind: str, dtype: str) -> None:
    assert proof_of(tiny_model(kind, dtype, "cuda")).holds


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_proof_costs_less_than_a_hundredth_of_200_steps(quantization: str) -> None:
    """The shape of Llama 3 8B, three samples, and steps of one pack of 16,384 tokens."""
    from bench._shapes import SHAPES, random_model, random_row
    from pipelines.layers.attention import PACKED
    from pipelines.layers.decoder_layer import fuse
    from pipelines.model.lora import attach
    from pipelines.train.batch import collate

    device, vocabulary = torch.device("cuda"), SHAPES["8b"]["vocab_size"]
    base = random_model("8b", PACKED, quantization, device, torch.bfloat16)
    model: Any = attach(base, LORA, seed=0).to(torch.bfloat16).train()
    assert fuse(model, True, "off") == ""
    loss, random = PackedLoss(model), np.random.default_rng(0)
    lengths = (1000, 16, 200)
    samples = [random.integers(0, vocabulary, length, np.int32) for length in lengths]
    batch = collate([random_row(0, 16_384, vocabulary)], device)

    def seconds(call: Any, repeats: int) -> float:
        call()  # compiles the kernels
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / repeats

    proof_s = seconds(lambda: prove_base(loss, samples), 2)
    step_s = seconds(lambda: loss(batch).backward(), 10)
    print(
        f"{quantization}: proof {proof_s:.3f} s, step {step_s:.4f} s, {proof_s / step_s / 200:.2%}"
    )
    assert proof_s < 0.01 * 200 * step_s
