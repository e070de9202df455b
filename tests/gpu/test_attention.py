"""Packed attention on a GPU is causal attention under a block mask, forward and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

SCALE = 0.2


def block_masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """SDPA in fp32 over the whole row [1, H, T, D], a token seeing only those before it in its own sample."""
    import torch
    from torch.nn import functional

    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(query.device)
    mask = (sample[:, None] == sample[None, :]).tril()
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=SCALE, enable_gqa=True)
    return out[0].transpose(0, 1)[None]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 2, 64), (4, 4, 128), (6, 2, 32)])
@pytest.mark.parametrize("lengths", [[700], [1, 300, 2, 77, 129], [1, 2, 1]])
def test_packed_attention_is_block_masked_attention(
    dtype: str, heads: int, kv_heads: int, size: int, lengths: list[int]
) -> None:
    import torch

    from pipelines.train.attention import SampleBounds, packed_attention

    generator = torch.Generator("cuda").manual_seed(3)

    def drawn(count: int) -> Any:
        shape = (1, count, sum(lengths), size)
        return torch.randn(shape, generator=generator, device="cuda").to(getattr(torch, dtype)).requires_grad_()

    query, key, value = given = drawn(heads), drawn(kv_heads), drawn(kv_heads)
    q, k, v = exact = [tensor.detach().float().requires_grad_() for tensor in given]
    bounds = SampleBounds.of(torch.tensor(lengths, device="cuda"))
    out, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=SCALE, bounds=bounds)
    expected = block_masked(q, k, v, lengths)
    weights = torch.randn(expected.shape, generator=generator, device="cuda")
    (out.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    tolerance = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 5e-3}[dtype]  # fp32 products may run as TF32
    _close(out, expected, tolerance)
    for tensor, reference in zip(given, exact, strict=True):
        _close(tensor.grad, reference.grad, tolerance)


def _close(found: torch.Tensor | None, expected: torch.Tensor | None, tolerance: float) -> None:
    """The difference's norm is small beside the expected one's, and no element is far off."""
    assert found is not None and expected is not None
    difference = found.float() - expected
    assert difference.norm() <= tolerance * expected.norm()
    assert difference.abs().max() <= 5 * tolerance * expected.abs().max()
