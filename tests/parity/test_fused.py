"""The fused layers and the frozen head equal transformers and PEFT: loss and adapter gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from bench._shapes import random_model, random_row
from pipelines.config.schema import LoraConfig
from pipelines.layers.attention import PACKED
from pipelines.layers.decoder_layer import fuse
from pipelines.layers.fp8 import to_fp8
from pipelines.model.lora import attach, trainable_parameters
from pipelines.train.batch import collate
from pipelines.train.loss import PackedLoss

SIZES = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig, "llama-biased": LlamaConfig, "mistral": MistralConfig,
    "qwen2": Qwen2Config, "qwen3": Qwen3Config,
}  # fmt: skip


def base_of(family: str) -> Any:
    extra = {
        "llama-biased": {"attention_bias": True, "mlp_bias": True},
        "qwen3": {"head_dim": 16},
    }.get(family, {})
    torch.manual_seed(0)
    config = FAMILIES[family](**SIZES, **extra, attn_implementation=PACKED)
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    for parameter in model.parameters():  # biases and norms that a fresh model leaves at 0 and 1
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def adapted(family: str, lora: LoraConfig, fp8: bool = False) -> Any:
    base = base_of(family)
    if fp8:
        to_fp8(base, base.lm_head)
    return with_adapter(base, lora)


def with_adapter(base: Any, lora: LoraConfig) -> Any:
    model = attach(base, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in trainable_parameters(model).values():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def tiny(quantization: str, shape: str = "tiny") -> Any:
    return random_model(shape, PACKED, quantization, torch.device("cpu"), torch.float32)


def packed_batch() -> Any:
    random = np.random.default_rng(3)
    lengths = np.array([5, 17, 1, 9])
    weights = random.choice([0.0, 0.5, 1.0], lengths.sum()).astype(np.float32)
    ids = random.integers(0, 96, lengths.sum()).astype(np.int32)
    return collate(
        [{"input_ids": ids, "loss_weights": weights, "sample_lengths": lengths, "sample_ids": []}]
    )


def loss_and_gradients(model: Any, batch: Any = None) -> tuple[float, dict[str, torch.Tensor]]:
    loss = PackedLoss(model)(batch or packed_batch())
    loss.backward()
    gradients = {}
    for name, parameter in trainable_parameters(model).items():
        assert parameter.grad is not None, name
        gradients[name], parameter.grad = parameter.grad, None
    return float(loss.detach()), gradients


def assert_equal(
    model: Any, reference: tuple[float, dict[str, torch.Tensor]], tolerance: float = 2e-5
) -> None:
    loss, gradients = loss_and_gradients(model)
    assert loss == pytest.approx(reference[0], rel=tolerance)
    for name, gradient in gradients.items():
        worst = (gradient - reference[1][name]).abs().max() / reference[1][name].abs().max()
        assert worst < tolerance, f"{name}: {worst}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stack", [True, False])
def test_fused_layers_equal_peft(family: str, stack: bool) -> None:
    model = adapted(family, LoraConfig(r=4, alpha=8))
    reference = loss_and_gradients(model)
    assert fuse(model, stack, "off") == ""
    assert_equal(model, reference)


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(r=4, alpha=8, targets="qv"),
        LoraConfig(r=4, alpha=8, targets=["k_proj", "down_proj"], rslora=True),
        LoraConfig(r=2, alpha=8, rank_pattern={"up_proj": 8}, alpha_pattern={"q_proj": 3}),
        LoraConfig(r=2, alpha=8, rank_pattern={"up_proj": 80, "down_proj": 70, "v_proj": 66}),
    ],
)
def test_fused_layers_equal_peft_for_some_targets_and_ranks(lora: LoraConfig) -> None:
    model = adapted("llama", lora)
    reference = loss_and_gradients(model)
    assert fuse(model, True, "off") == ""
    assert_equal(model, reference)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_fused_layers_equal_peft_when_recomputed(recompute: str, family: str) -> None:
    model = adapted(family, LoraConfig(r=4, alpha=8)).train()
    reference = loss_and_gradients(model)
    assert fuse(model, True, recompute) == ""
    assert_equal(model, reference)


@pytest.mark.parametrize("shape", ["tiny", "qwen3-tiny"])
@pytest.mark.parametrize("recompute", ["off", "full"])
def test_fused_layers_equal_peft_on_nf4(recompute: str, shape: str) -> None:
    model = with_adapter(tiny("nf4", shape), LoraConfig(r=4, alpha=8)).train()
    reference = loss_and_gradients(model)
    assert fuse(model, True, recompute) == ""
    assert_equal(model, reference)


def test_fused_layers_equal_peft_on_float8() -> None:
    """Both sides use equal quantized weights and round gradients to float8 at different points."""
    model = adapted("llama", LoraConfig(r=4, alpha=8), fp8=True)
    reference = loss_and_gradients(model)
    assert fuse(model, True, "off") == ""
    assert_equal(model, reference, 0.1)


@pytest.mark.parametrize("fused", [True, False])
def test_float8_differs_from_the_plain_base_by_its_rounding_only(fused: bool) -> None:
    """The loss, and each adapter's gradient in norm, compared with a base that is not quantized.

    Three bits of mantissa change a factor by 2.6 % (root mean square) and the terms of a product by
    3.7 %. A gradient collects that from the products before and after it, 5 to 9 % here. Scales
    that are wrong by 5 %, or noise of 10 % on products, would give 16 % and more.
    """
    batch, lora = collate([random_row(0, 512, 512)]), LoraConfig(r=8, alpha=16)
    exact_loss, exact = loss_and_gradients(with_adapter(tiny("none"), lora), batch)
    model = with_adapter(tiny("fp8"), lora)
    assert not fused or fuse(model, True, "off") == ""
    loss, gradients = loss_and_gradients(model, batch)
    assert loss == pytest.approx(exact_loss, rel=2e-4)
    for name, gradient in gradients.items():
        off = (gradient - exact[name]).norm() / exact[name].norm()
        assert off < 0.12, f"{name}: {off}"


def test_fp16_gradients_are_as_close_to_fp32_as_peft_for_large_activations() -> None:
    """The first layer's A for embeddings of rms 10: its gradient over rms would underflow."""

    def gradients(dtype: torch.dtype, fused: bool) -> dict[str, torch.Tensor]:
        model = adapted("llama", LoraConfig(r=4, alpha=8)).to(dtype)
        base: Any = model.get_base_model()
        base.model.embed_tokens.weight.data *= (
            10 / base.model.embed_tokens.weight.float().square().mean().sqrt()
        )
        assert not fused or fuse(model, True, "off") == ""
        (PackedLoss(model)(packed_batch()) * 2.0**-6).backward()
        named = trainable_parameters(model).items()
        return {
            name: p.grad.double() for name, p in named if p.grad is not None and "lora_A" in name
        }

    exact, plain, fused = (
        gradients(*of)
        for of in ((torch.float32, False), (torch.float16, False), (torch.float16, True))
    )
    for name, gradient in exact.items():
        off, allowed = (
            (other[name] - gradient).norm() / gradient.norm() for other in (fused, plain)
        )
        assert off <= 1.2 * allowed + 1e-3, f"{name}: error {off}, of PEFT {allowed}"


def test_stacking_changes_no_weight_and_keeps_the_modules_parameters() -> None:
    model = adapted("llama", LoraConfig(r=4, alpha=8))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert fuse(model, True, "off") == ""
    base: Any = model.get_base_model()
    attention = base.model.layers[0].self_attn
    q, k = attention.q_proj.get_base_layer().weight, attention.k_proj.get_base_layer().weight
    assert k.data_ptr() == q.data_ptr() + q.numel() * q.element_size()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        (LoraConfig(r=4, alpha=8, dropout=0.1), "dropout"),
        (LoraConfig(r=4, alpha=8, dora=True), "DoRA"),
        (
            LoraConfig(r=4, alpha=8, targets="qv", modules_to_save=["down_proj"]),
            "is trained itself",
        ),
        (LoraConfig(r=4, alpha=8, targets="qv", modules_to_save=["norm"]), "a norm is trained"),
    ],
)
def test_a_model_that_cannot_be_fused_gets_a_reason_and_keeps_its_layers(
    lora: LoraConfig, reason: str
) -> None:
    model = attach(base_of("llama"), lora, seed=1)
    assert reason in fuse(model, True, "off")
    base: Any = model.get_base_model()
    assert "forward" not in vars(base.model.layers[0])


def test_frozen_head_in_chunks_equals_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama", LoraConfig(r=4, alpha=8))
    reference = loss_and_gradients(model)
    monkeypatch.setattr("pipelines.train.loss._CHUNK_BYTES", 96 * 4 * 3)
    assert_equal(model, reference)
    causal, batch = model.get_base_model(), packed_batch()
    hidden = causal.model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        bounds=batch.bounds,
    ).last_hidden_state
    logits = causal.lm_head(hidden[0, batch.label_positions])
    plain = (
        torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none") @ batch.weights
    )
    plain.backward()
    assert reference[0] == pytest.approx(float(plain.detach()), rel=1e-6)
    for name, parameter in trainable_parameters(model).items():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, reference[1][name], rtol=1e-4, atol=1e-6), name


def test_an_adapter_learns_equally_well_on_a_float8_base() -> None:
    """Held-out loss near the best, 1.36, and within 1 % of the plain base's, on either base."""
    num_steps, models, losses = 60, {}, {}
    heldout = collate([random_row(1000, 2048, 512, learnable=True)])

    def heldout_loss(model: Any) -> float:
        with torch.no_grad():
            return float(PackedLoss(model)(heldout)) / heldout.total_weight

    for quantization in ("none", "fp8"):
        base = tiny(quantization)
        base.lm_head.weight.data *= (
            20  # at 0.02 and this width no logit is large enough for a loss below 3.7
        )
        models[quantization] = model = attach(base, LoraConfig(r=16, alpha=32), seed=0).train()
        assert fuse(model, True, "off") == ""
        loss_of, optimizer = (
            PackedLoss(model),
            torch.optim.AdamW(trainable_parameters(model).values(), weight_decay=0),
        )
        for step in range(num_steps):
            optimizer.param_groups[0]["lr"] = 3e-3 * (0.5 + 0.5 * np.cos(np.pi * step / num_steps))
            batch = collate([random_row(step, 1024, 512, learnable=True)])
            (loss_of(batch) / batch.total_weight).backward()
            optimizer.step()
            optimizer.zero_grad()
        losses[quantization] = heldout_loss(model)
    plain = trainable_parameters(models["none"])
    for name, parameter in trainable_parameters(models["fp8"]).items():
        plain[name].data.copy_(parameter.data)
    assert losses["none"] < 1.5
    assert losses["fp8"] == pytest.approx(losses["none"], rel=0.01)
    assert heldout_loss(models["none"]) == pytest.approx(losses["none"], rel=0.01)
