"""The proof of a base accepts what the packed path computes, and refuses what it computes wrongly.

The packed attention itself refuses sinks and windows. `only_the_proof` takes that check away, so
that these tests see the proof alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config.schema import LoraConfig
from pipelines.core.errors import UserError
from pipelines.layers.attention import PACKED
from pipelines.layers.decoder_layer import fuse
from pipelines.layers.fp8 import to_fp8
from pipelines.model.full_finetune import unfreeze
from pipelines.model.lora import attach, trainable_parameters
from pipelines.model.lora_init import init_pissa
from pipelines.train import proof_losses
from pipelines.train.base_proof import BaseProof, prove_base
from pipelines.train.loss import PackedLoss
from pipelines.train.proof_errors import check_proof
from tests.tiny_models import random_samples, tiny_model

PRECISIONS = ["float32", "bfloat16"]
LORA = LoraConfig(r=4, alpha=8, dropout=0.5)


def proof_of(model: Any, samples: list[np.ndarray] | None = None) -> BaseProof:
    return prove_base(PackedLoss(model), samples or random_samples())


def refusal_of(model: Any, samples: list[np.ndarray] | None = None) -> str:
    with pytest.raises(UserError) as error:
        check_proof(proof_of(model, samples), "BASE", model)
    assert "\n" not in str(error.value)
    return str(error.value)


def adapted(model: Any, scale: float, lora: LoraConfig = LORA) -> Any:
    """The model in training mode with an adapter whose B has values of this size."""
    model = attach(model, lora, seed=0).train()
    for name, parameter in trainable_parameters(model).items():
        if "lora_B" in name:
            parameter.data.normal_(0, scale, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def only_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.layers.attention._check_arguments", lambda *_: None)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2", "mixtral"])
def test_a_base_that_is_computed_exactly_is_proven(kind: str, dtype: str) -> None:
    proof = proof_of(tiny_model(kind, dtype))
    assert proof.holds and not proof.leaks, proof
    assert proof.num_samples == 5 and proof.num_tokens == 150
    assert proof.difference.mean > 0 and proof.difference.limit < 0.05
    assert "5 samples, mean difference" in str(proof) and "no leak" in str(proof)


def test_a_window_that_no_sample_crosses_is_no_reason_to_refuse() -> None:
    assert proof_of(tiny_model("gemma3_text"), random_samples((24, 7, 20))).holds


@pytest.mark.usefixtures("only_the_proof")
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    ("kind", "values", "cause"),
    [
        ("gpt_oss", {}, "attention sinks"),
        ("gemma3_text", {}, "sliding_window=24"),
        ("cohere", {}, "logit_scale=0.25"),
        ("phi3", {}, "longest sample of a pack (longrope)"),
        (
            "llama",
            {
                "max_position_embeddings": 32,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
            },
            "longest sample of a pack (dynamic)",
        ),
    ],
)
def test_a_base_that_is_computed_wrongly_is_refused_with_its_cause(
    kind: str, values: dict[str, Any], cause: str, dtype: str
) -> None:
    model = tiny_model(kind, dtype, **values)
    line = refusal_of(model)
    assert cause in line and "another loss than transformers" in line and f"({kind})" in line
    proof = proof_of(model)
    for number in (proof.packed_loss, proof.reference_loss):
        assert f"{number:.4f}" in line


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", ["qwen3_5_text", "lfm2", "granitemoehybrid"])
def test_layers_that_carry_a_state_across_samples_are_refused(kind: str, dtype: str) -> None:
    model = tiny_model(kind, dtype)
    proof = proof_of(model)
    assert proof.leaks and proof.leak_limit == 0
    line = refusal_of(model)
    assert "would see each other" in line and f"{proof.leak:.2g} nats" in line
    assert "carry a state from token to token" in line


@pytest.mark.usefixtures("only_the_proof")
def test_a_few_wrong_tokens_are_not_hidden_by_the_others_in_half_precision() -> None:
    """Only the last 6 tokens of the longest sample are behind the window."""
    model = tiny_model("mistral", "bfloat16", sliding_window=154)
    samples = random_samples((160, 120, 100, 80, 60))
    exact = proof_of(tiny_model("mistral", "bfloat16"), samples)
    assert exact.holds and exact.difference.block < 0.7 * exact.difference.block_limit
    chunked = proof_of(_forgets_at(model, 154), samples)
    assert chunked.difference.mean < chunked.difference.limit and not chunked.holds
    assert chunked.difference.block_sample == 4 and chunked.difference.block_start == 127


def _forgets_at(model: Any, position: int) -> Any:
    """The model whose own attention reads nothing before `position` from there on."""
    for layer in model.model.layers:
        attention, forward = layer.self_attn, layer.self_attn.forward

        def chunked(
            *arguments: Any, forward: Any = forward, config: Any = attention.config, **named: Any
        ) -> Any:
            mask = named.get("attention_mask")
            if config._attn_implementation != PACKED and mask is not None:
                lost = torch.zeros_like(mask, dtype=torch.bool)
                lost[..., position:, :position] = True
                never = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
                named["attention_mask"] = mask.masked_fill(lost, never)
            return forward(*arguments, **named)

        attention.forward = chunked
    return model


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("fused", [False, True])
def test_adapters_are_part_of_both_sides_and_dropout_of_neither(dtype: str, fused: bool) -> None:
    model = adapted(tiny_model("qwen3", dtype), 0.05, LORA.model_copy(update={"dropout": 0.0}))
    plain = proof_of(tiny_model("qwen3", dtype)).reference_loss
    assert not fused or fuse(model, True, "off") == ""
    model.to(getattr(torch, dtype))
    proof = proof_of(model)
    assert proof.holds and abs(proof.reference_loss - plain) > 0.005, proof
    if not fused:
        again = proof_of(adapted(tiny_model("qwen3", dtype), 0.05).to(getattr(torch, dtype)))
        assert (again.packed_loss, again.holds) == (proof.packed_loss, True)


def test_fused_layers_that_compute_something_else_are_refused() -> None:
    lora = LORA.model_copy(update={"dropout": 0.0})
    windows = adapted(tiny_model("mistral", sliding_window=24), 0.05, lora)
    assert fuse(windows, True, "off") == "" and "sliding_window=24" in refusal_of(windows)
    model = adapted(tiny_model("llama"), 0.05, lora)
    assert fuse(model, True, "off") == "" and proof_of(model).holds
    model.get_base_model().model.layers[1].forward.attention._norm = (
        model.get_base_model().model.layers[0].input_layernorm
    )
    assert "another loss than transformers" in refusal_of(model)


def test_pissa_full_training_and_float8_are_proven() -> None:
    pissa = attach(tiny_model("llama"), LoraConfig(r=4, alpha=8, init="pissa"), seed=0)
    init_pissa(pissa)
    assert proof_of(pissa).holds
    assert proof_of(unfreeze(tiny_model("llama"))).holds
    for dtype in PRECISIONS:
        model = tiny_model("llama", dtype)
        to_fp8(model, model.lm_head)
        proof = proof_of(model)
        assert proof.holds and proof.difference.limit < 0.2, proof


def test_an_adapter_that_no_text_reaches_is_named() -> None:
    lora = LoraConfig(r=4, targets=["q_proj", "v_proj"])
    model: Any = attach(tiny_model("llama"), lora, seed=0)
    proof = proof_of(model)
    assert proof.holds and proof.unreached == ()
    layer = model.get_base_model().model.layers[1].self_attn
    layer.v_proj.forward = None
    base = layer.v_proj.get_base_layer()
    layer._modules["v_proj"], tower = base, layer.v_proj
    model.get_base_model().add_module("vision_tower", torch.nn.ModuleDict({"v_proj": tower}))
    assert proof_of(model).unreached == ("base_model.model.vision_tower.v_proj",)
    line = refusal_of(model)
    assert "1 of the adapted modules, first vision_tower.v_proj" in line
    assert "leave v_proj out of lora.targets" in line


def test_jambas_projection_that_is_read_without_a_call_is_named() -> None:
    lora = LoraConfig(r=4, targets=["dt_proj", "x_proj"])
    proof = proof_of(attach(tiny_model("jamba"), lora, seed=0))
    assert [name.rsplit(".", 1)[-1] for name in proof.unreached] == ["dt_proj"]


def test_a_sample_too_long_for_eager_attention_is_compared_to_its_end(
    monkeypatch: pytest.MonkeyPatch, only_the_proof: None
) -> None:
    monkeypatch.setattr(proof_losses, "_EAGER_SCORES", 4 * 20**2)
    for dtype in PRECISIONS:
        proof = proof_of(tiny_model("llama", dtype))
        assert proof.holds, proof
    # The window is longer than the part that eager attention sees.
    model = tiny_model("gemma3_text", sliding_window=30)
    proof = proof_of(model)
    assert not proof.holds and proof.difference.block_start > 0


@pytest.mark.parametrize("eager_tokens", [20, 500])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_an_sdpa_that_computes_something_else_is_no_measure(
    dtype: str, eager_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the sdpa of Gemma 2, which leaves out its attention cap in some transformers."""
    from transformers import AttentionInterface

    from pipelines.layers import attention

    monkeypatch.setattr(proof_losses, "_EAGER_SCORES", 4 * eager_tokens**2)
    sdpa = AttentionInterface._global_mapping["sdpa"]
    monkeypatch.setitem(
        AttentionInterface._global_mapping,
        "sdpa",
        lambda *arguments, scaling, **named: sdpa(*arguments, scaling=0.5 * scaling, **named),
    )
    assert proof_of(tiny_model("llama", dtype)).holds
    padded: Any = attention.padded_attention
    monkeypatch.setattr(
        attention, "padded_attention", lambda *given: padded(*given[:-1], 0.5 * given[-1])
    )
    assert not proof_of(tiny_model("llama", dtype)).holds


def test_a_single_sample_is_packed_twice() -> None:
    assert proof_of(tiny_model("llama"), random_samples((9,))).holds
    assert proof_of(tiny_model("lfm2"), random_samples((9,))).leaks
    same = [np.full(12, 7, np.int32), np.full(5, 7, np.int32)]
    assert proof_of(tiny_model("lfm2"), same).leaks, "there is one id in all samples"


def test_the_model_and_the_random_state_are_as_before() -> None:
    model = adapted(tiny_model("llama"), 0.05)
    fuse(model, True, "off")
    layers = model.get_base_model().model.layers
    layers[0].eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    forwards = [layer.__dict__.get("forward") for layer in layers]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert proof_of(model).holds
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [layer.__dict__.get("forward") for layer in layers] == forwards
    assert model.config._attn_implementation == PACKED
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
