"""The kernels compared with their reference, and the fused layers in bf16 with PEFT in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("tokens", "width", "size"), [(5, 192, 32), (300, 4096, 128), (33, 14_336, 64)]
)
def test_kernels_equal_their_reference(dtype: str, tokens: int, width: int, size: int) -> None:
    from pipelines.layers.kernels import reference, triton_rows

    actual, expected = (
        _all_kernels(module, dtype, tokens, width, size, "cuda")
        for module in (triton_rows, reference)
    )
    for name, ours in actual.items():
        error = (ours.float() - expected[name].float()).norm() / expected[name].float().norm()
        # A quotient next to a rounding edge of float8 may be rounded to either side.
        tolerance = 1e-2 if name == "quantized" else TOLERANCE[dtype]
        assert error < tolerance, f"{name}: {error}"


def _all_kernels(
    module: Any, dtype: str, tokens: int, width: int, size: int, device: str
) -> dict[str, torch.Tensor]:
    """Each kernel's results on the same random numbers; some inputs are views of wider buffers."""
    import torch

    from pipelines.layers.kernels import LowRank

    generator = torch.Generator(device).manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(getattr(torch, dtype))

    def wide(*shape: int) -> torch.Tensor:
        return torch.cat([drawn(*shape), drawn(shape[0], 32)], 1)[:, : shape[1]]

    x, weight, dy, added = (
        drawn(tokens, width),
        drawn(width),
        drawn(tokens, width),
        drawn(tokens, width),
    )
    xa, half = drawn(tokens, 3 * 9), width // 2
    first = LowRank(xa[:, :9], drawn(half, 9), 0.3)
    second, third = (
        LowRank(xa[:, 9:], drawn(half, 18), 0.2),
        LowRank(xa[:, 3:12], drawn(9, half).T, 1.5),
    )
    y, rstd = module.rms_norm(x, weight, 1e-5)
    results = {"norm": y, "rstd": rstd, "swiglu": module.swiglu(wide(tokens, width), first, second)}
    results["norm_backward"] = module.rms_norm_backward(dy, x, weight, rstd, None)
    results["norm_backward_added"] = module.rms_norm_backward(dy, x, weight, rstd, added)
    results["swiglu_alone"] = module.swiglu(x, None, None)
    for name, updates in (
        ("both", (first, second)),
        ("up", (None, second)),
        ("none", (None, None)),
    ):
        act, gate_up = dy[:, :half].contiguous(), wide(tokens, width)
        grad_xa = (
            torch.full((tokens, 32), torch.nan, dtype=x.dtype, device=device)
            if any(updates)
            else None
        )
        module.swiglu_backward_(act, gate_up, *updates, third if any(updates) else None, grad_xa)
        results |= {f"{name}_act": act, f"{name}_gate_up": gate_up}
        results |= {} if grad_xa is None else {f"{name}_grad_xa": grad_xa}
    results["added"] = module.add(wide(tokens, half), third, x[:, :half].contiguous())
    results["residual"] = module.add(wide(tokens, half), None, x[:, :half].contiguous())
    tables = (drawn(tokens, size // 2).repeat(1, 2), drawn(tokens, size // 2).repeat(1, 2))
    narrow, broad = (
        LowRank(xa[:, :9], drawn(3 * size, 9), 0.5),
        LowRank(xa[:, 9:], drawn(3 * size, 18), 0.2),
    )
    head_norm = (drawn(size), 1e-5)
    for name, lora, turn in (("q", narrow, tables), ("k", None, tables), ("v", broad, None)):
        heads = wide(tokens, 3 * size)
        module.add_rotate_(heads, 3, lora, turn)
        results[f"rotated_{name}"] = heads
        heads, out = wide(tokens, 3 * size), wide(tokens, 3 * size)
        module.add_rotate_(heads, 3, lora, turn, None if name == "v" else head_norm, out)
        results |= {f"updated_{name}": heads, f"normed_{name}": out}
    gradient = wide(tokens, 3 * size)
    module.head_norm_backward_(gradient, wide(tokens, 3 * size), 3, head_norm)
    results["head_norm_backward"] = gradient
    turned = wide(tokens, 3 * size).clone().unflatten(1, (3, size))
    module.rotate(turned, turned, *tables, inverse=True)
    logits = 3 * x
    losses = module.cross_entropy_(logits, torch.arange(tokens, device=device), dy[:, 0].float())
    values, scale = module.quantize_rows(x)
    return results | {
        "turned": turned,
        "losses": losses,
        "logits": logits,
        "quantized": values.float() * scale,
    }


ADAPTERS: dict[str, dict[str, Any]] = {
    "r5": {"r": 5}, "r64": {"r": 64}, "r80": {"r": 80}, "qv": {"r": 8, "targets": "qv"},
    "down r70": {"r": 8, "targets": ["gate_proj", "down_proj"], "rank_pattern": {"down_proj": 70}},
}  # fmt: skip
"""Ranks that are no power of two, ranks that need a product of their own, linears without LoRA."""


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["none", "nf4", "fp8"])
@pytest.mark.parametrize("recompute", ["off", "selective", "full"])
def test_fused_layers_are_as_close_to_fp32_as_peft(quantization: str, recompute: str) -> None:
    """Loss and adapter gradients in bf16, compared with PEFT in fp32 on equal quantized weights."""
    check_near_fp32(quantization, "bfloat16", recompute)


@pytest.mark.gpu
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_fused_layers_support_other_ranks_and_targets(adapter: str, quantization: str) -> None:
    check_near_fp32(quantization, "bfloat16", lora=ADAPTERS[adapter])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("adapter", ["r5", "r64"])
def test_fused_layers_support_fp16_and_fp32(dtype: str, adapter: str) -> None:
    check_near_fp32("none", dtype, lora=ADAPTERS[adapter])


@pytest.mark.gpu
def test_fused_layers_support_separate_weights() -> None:
    check_near_fp32("none", "bfloat16", stack=False)


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["none", "nf4", "fp8"])
@pytest.mark.parametrize("recompute", ["off", "full"])
def test_fused_layers_support_head_norms(quantization: str, recompute: str) -> None:
    check_near_fp32(quantization, "bfloat16", recompute, shape="qwen3-tiny")


@pytest.mark.gpu
def test_fused_layers_support_head_norms_in_fp32_with_separate_weights() -> None:
    check_near_fp32("none", "float32", shape="qwen3-tiny", stack=False)


def check_near_fp32(
    quantization: str, dtype: str, recompute: str = "off", device: str = "cuda", **options: Any
) -> None:
    import torch

    half = getattr(torch, dtype)
    exact_loss, exact = _loss_and_gradients(
        quantization, torch.float32, device, fused=False, **options
    )
    plain_loss, plain = _loss_and_gradients(quantization, half, device, fused=False, **options)
    fused_loss, fused = _loss_and_gradients(
        quantization, half, device, fused=True, recompute=recompute, **options
    )
    assert abs(fused_loss - exact_loss) <= 2 * abs(plain_loss - exact_loss) + 2e-3 * exact_loss
    for name, gradient in exact.items():
        off, allowed = (
            (gradients[name] - gradient).norm() / gradient.norm() for gradients in (fused, plain)
        )
        assert off <= 1.5 * allowed + 1e-2, f"{name}: error {off}, of PEFT {allowed}"


def _loss_and_gradients(
    quantization: str,
    dtype: torch.dtype,
    device: str,
    fused: bool,
    recompute: str = "off",
    stack: bool = True,
    lora: dict[str, Any] | None = None,
    shape: str = "tiny",
) -> tuple[float, dict[str, torch.Tensor]]:
    import torch

    from bench._shapes import SHAPES, random_model, random_row
    from pipelines.config.schema import LoraConfig
    from pipelines.layers.attention import PACKED
    from pipelines.layers.decoder_layer import fuse
    from pipelines.model.lora import attach, trainable_parameters
    from pipelines.train.batch import collate
    from pipelines.train.loss import PackedLoss

    base = random_model(shape, PACKED, quantization, torch.device(device), dtype)
    model = attach(base, LoraConfig(alpha=16, **(lora or {"r": 8})), seed=0).train()
    generator = torch.Generator().manual_seed(2)
    for parameter in trainable_parameters(model).values():
        parameter.data = (0.05 * torch.randn(parameter.shape, generator=generator)).to(
            device, dtype
        )
    if fused:
        assert fuse(model, stack, recompute) == ""
    row = random_row(0, 512, SHAPES[shape]["vocab_size"])
    loss = PackedLoss(model)(collate([row], device))
    loss.backward()
    gradients = {}
    for name, parameter in trainable_parameters(model).items():
        assert parameter.grad is not None
        gradients[name] = parameter.grad.float()
    return float(loss.detach()), gradients
