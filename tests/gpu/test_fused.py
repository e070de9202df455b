"""The kernels against what they mean in torch, and the fused layers in bf16 against PEFT's in fp32."""

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

    found, expected = (
        _all_kernels(module, dtype, tokens, width, size, "cuda")
        for module in (triton_rows, reference)
    )
    for name, ours in found.items():
        error = (ours.float() - expected[name].float()).norm() / expected[name].float().norm()
        tolerance = (
            1e-2 if name == "quantized" else TOLERANCE[dtype]
        )  # a quotient next to a float8's rounding edge
        assert error < tolerance, f"{name}: {error}"


def _all_kernels(
    module: Any, dtype: str, tokens: int, width: int, size: int, device: str
) -> dict[str, torch.Tensor]:
    """What each kernel makes of the same random numbers. Half of the inputs lie in wider buffers, as in use."""
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
    low, half = drawn(tokens, 3 * 9), width // 2
    first = LowRank(low[:, :9], drawn(half, 9), 0.3)
    second, third = (
        LowRank(low[:, 9:], drawn(half, 18), 0.2),
        LowRank(low[:, 3:12], drawn(9, half).T, 1.5),
    )
    y, rstd = module.rms_norm(x, weight, 1e-5)
    found = {"norm": y, "rstd": rstd, "swiglu": module.swiglu(wide(tokens, width), first, second)}
    found["norm_backward"] = module.rms_norm_backward(dy, x, weight, rstd, None)
    found["norm_backward_added"] = module.rms_norm_backward(dy, x, weight, rstd, added)
    found["swiglu_alone"] = module.swiglu(x, None, None)
    for name, lows in (("both", (first, second)), ("up", (None, second)), ("none", (None, None))):
        act, gate_up = dy[:, :half].contiguous(), wide(tokens, width)
        d_low = (
            torch.full((tokens, 32), torch.nan, dtype=x.dtype, device=device) if any(lows) else None
        )
        module.swiglu_backward_(act, gate_up, *lows, third if any(lows) else None, d_low)
        found |= {f"{name}_act": act, f"{name}_gate_up": gate_up}
        found |= {} if d_low is None else {f"{name}_d_low": d_low}
    found["added"] = module.add(wide(tokens, half), third, x[:, :half].contiguous())
    found["residual"] = module.add(wide(tokens, half), None, x[:, :half].contiguous())
    tables = (drawn(tokens, size // 2).repeat(1, 2), drawn(tokens, size // 2).repeat(1, 2))
    narrow, broad = (
        LowRank(low[:, :9], drawn(3 * size, 9), 0.5),
        LowRank(low[:, 9:], drawn(3 * size, 18), 0.2),
    )
    head_norm = (drawn(size), 1e-5)
    for name, lora, turn in (("q", narrow, tables), ("k", None, tables), ("v", broad, None)):
        heads = wide(tokens, 3 * size)
        module.add_rotate_(heads, 3, lora, turn)
        found[f"rotated_{name}"] = heads
        heads, out = wide(tokens, 3 * size), wide(tokens, 3 * size)
        module.add_rotate_(heads, 3, lora, turn, None if name == "v" else head_norm, out)
        found |= {f"held_{name}": heads, f"normed_{name}": out}
    gradient = wide(tokens, 3 * size)
    module.head_norm_backward_(gradient, wide(tokens, 3 * size), 3, head_norm)
    found["head_norm_backward"] = gradient
    turned = wide(tokens, 3 * size).clone().unflatten(1, (3, size))
    module.rotate(turned, turned, *tables, inverse=True)
    logits = 3 * x
    losses = module.cross_entropy_(logits, torch.arange(tokens, device=device), dy[:, 0].float())
    values, scale = module.quantize_rows(x)
    return found | {
        "turned": turned,
        "losses": losses,
        "logits": logits,
        "quantized": values.float() * scale,
    }


ADAPTERS: dict[str, dict[str, Any]] = {
    "r5": {"r": 5}, "r64": {"r": 64}, "r80": {"r": 80}, "qv": {"r": 8, "targets": "qv"},
    "down r70": {"r": 8, "targets": ["gate_proj", "down_proj"], "rank_pattern": {"down_proj": 70}},
}  # fmt: skip
"""Ranks beside a tile's, above what a tile multiplies by the way, and linears without an adapter."""


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["none", "nf4", "fp8"])
@pytest.mark.parametrize("recompute", ["off", "selective", "full"])
def test_fused_layers_are_as_near_to_fp32_as_pefts(quantization: str, recompute: str) -> None:
    """Loss and adapter gradients in bf16, against the same quantized numbers in fp32 through PEFT's own layers."""
    check_near_fp32(quantization, "bfloat16", recompute)


@pytest.mark.gpu
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_fused_layers_with_other_adapters(adapter: str, quantization: str) -> None:
    check_near_fp32(quantization, "bfloat16", lora=ADAPTERS[adapter])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("adapter", ["r5", "r64"])
def test_fused_layers_in_other_precisions(dtype: str, adapter: str) -> None:
    check_near_fp32("none", dtype, lora=ADAPTERS[adapter])


@pytest.mark.gpu
def test_fused_layers_whose_weights_stay_apart() -> None:
    check_near_fp32("none", "bfloat16", stack=False)


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["none", "nf4", "fp8"])
@pytest.mark.parametrize("recompute", ["off", "full"])
def test_fused_layers_with_norms_of_heads(quantization: str, recompute: str) -> None:
    check_near_fp32(quantization, "bfloat16", recompute, shape="qwen3-tiny")


@pytest.mark.gpu
def test_fused_layers_with_norms_of_heads_in_fp32_and_apart() -> None:
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
            (found[name] - gradient).norm() / gradient.norm() for found in (fused, plain)
        )
        assert off <= 1.5 * allowed + 1e-2, f"{name}: {off} off, PEFT's {allowed}"


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
    from pipelines.model.lora import attach, trainable
    from pipelines.train.batch import collate
    from pipelines.train.loss import PackedLoss

    base = random_model(shape, PACKED, quantization, torch.device(device), dtype)
    model = attach(base, LoraConfig(alpha=16, **(lora or {"r": 8})), seed=0).train()
    generator = torch.Generator().manual_seed(2)
    for parameter in trainable(model).values():
        parameter.data = (0.05 * torch.randn(parameter.shape, generator=generator)).to(
            device, dtype
        )
    if fused:
        assert fuse(model, stack, recompute) == ""
    row = random_row(0, 512, SHAPES[shape]["vocab_size"])
    loss = PackedLoss(model)(collate([row], device))
    loss.backward()
    gradients = {}
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None
        gradients[name] = parameter.grad.float()
    return float(loss.detach()), gradients
