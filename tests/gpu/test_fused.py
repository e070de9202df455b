"""The kernels against what they mean in torch, and the fused layers in bf16 against PEFT's in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("tokens", "width"), [(5, 48), (300, 4096), (33, 14_336)])
def test_kernels_equal_their_reference(dtype: str, tokens: int, width: int) -> None:
    import torch

    from pipelines.model.kernels import LowRank, gpu, reference

    generator = torch.Generator("cuda").manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(getattr(torch, dtype))

    x, weight, dy, added = drawn(tokens, width), drawn(width), drawn(tokens, width), drawn(tokens, width)
    targets = torch.randint(0, width, (tokens,), device="cuda")
    cos, sin = (drawn(tokens, 8).repeat(1, 2) for _ in range(2))
    low, half = drawn(tokens, 3 * 9), width // 2
    first = LowRank(low[:, :9], drawn(half, 9), 0.3)
    second, third = LowRank(low[:, 9:], drawn(half, 18), 0.2), LowRank(low[:, 3:12], drawn(9, half).T, 1.5)
    found: dict[Any, list[torch.Tensor]] = {}
    for module in (gpu, reference):
        y, rstd = module.rms_norm(x, weight, 1e-5)
        parts = [y, module.rms_apply(x, weight, rstd), module.rms_norm_backward(dy, x, weight, rstd, added)]
        parts += [module.rms_norm_backward(dy, x, weight, rstd, None)]
        parts += [module.swiglu(x, first, second), module.swiglu(x, None, None)]
        act, gate_up, sum_ = dy[:, :half].contiguous(), x.clone(), dy[:, half:].contiguous()
        module.swiglu_backward_(act, gate_up, first, second, third)
        module.add_(sum_, third, x[:, :half].contiguous())
        parts.append(sum_)
        logits = 3 * x
        parts += [act, gate_up, module.cross_entropy_(logits, targets, dy[:, 0].float()), logits]
        turned = x.clone()
        heads = turned[:, :48].unflatten(1, (3, 16))
        module.rotate(heads, heads, cos, sin)
        parts.append(turned.clone())
        module.rotate(heads, heads, cos, sin, inverse=True)
        values, scale = module.quantize_rows(x)
        found[module] = [*parts, turned, values.float() * scale]
    for number, (ours, expected) in enumerate(zip(found[gpu], found[reference], strict=True)):
        error = (ours.float() - expected.float()).norm() / expected.float().norm()
        tolerance = TOLERANCE[dtype] if number < len(parts) + 1 else 1e-2  # a quotient next to a float8's rounding edge
        assert error < tolerance, f"{number}: {error}"


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["none", "nf4", "fp8"])
@pytest.mark.parametrize("recompute", ["off", "selective", "full"])
def test_fused_layers_are_as_near_to_fp32_as_pefts(quantization: str, recompute: str) -> None:
    """Loss and adapter gradients in bf16, against the same quantized numbers in fp32 through PEFT's own layers."""
    import torch

    exact_loss, exact = _loss_and_gradients(quantization, torch.float32, fused=False)
    plain_loss, plain = _loss_and_gradients(quantization, torch.bfloat16, fused=False)
    fused_loss, fused = _loss_and_gradients(quantization, torch.bfloat16, fused=True, recompute=recompute)
    assert abs(fused_loss - exact_loss) <= 2 * abs(plain_loss - exact_loss) + 2e-3 * exact_loss
    for name, gradient in exact.items():
        off, allowed = ((found[name] - gradient).norm() / gradient.norm() for found in (fused, plain))
        assert off <= 1.5 * allowed + 1e-2, f"{name}: {off} off, PEFT's {allowed}"


def _loss_and_gradients(
    quantization: str, dtype: torch.dtype, fused: bool, recompute: str = "off"
) -> tuple[float, dict[str, torch.Tensor]]:
    import torch

    from bench._shapes import SHAPES, random_model, random_row
    from pipelines.model.lora import attach, trainable
    from pipelines.sections import LoraConfig
    from pipelines.train.attention import PACKED
    from pipelines.train.batch import collate
    from pipelines.train.fused.layer import fuse
    from pipelines.train.loss import PackedLoss

    base = random_model("tiny", PACKED, quantization, torch.device("cuda"), dtype)
    model = attach(base, LoraConfig(r=8, alpha=16), seed=0).train()
    generator = torch.Generator().manual_seed(2)
    for parameter in trainable(model).values():
        parameter.data = (0.05 * torch.randn(parameter.shape, generator=generator)).to("cuda", dtype)
    if fused:
        assert fuse(model, True, recompute) == ""
    row = random_row(0, 512, SHAPES["tiny"]["vocab_size"])
    loss = PackedLoss(model)(collate([row], "cuda"))
    loss.backward()
    gradients = {}
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None
        gradients[name] = parameter.grad.float()
    return float(loss.detach()), gradients
