"""Packed attention on a GPU, and the kernels for short samples, equal block-masked attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    import torch

SCALE = 0.2


def block_masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """SDPA in fp32 over the row [1, H, T, D]; a token attends to earlier ones of its own sample."""
    import torch
    from torch.nn import functional

    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(
        query.device
    )
    mask = (sample[:, None] == sample[None, :]).tril()
    out = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=SCALE, enable_gqa=True
    )
    return out[0].transpose(0, 1)[None]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 2, 64), (4, 4, 128), (6, 2, 32)])
@pytest.mark.parametrize("lengths", [[700], [1, 300, 2, 77, 129], [1, 2, 1]])
def test_packed_attention_equals_block_masked_attention(
    dtype: str, heads: int, kv_heads: int, size: int, lengths: list[int]
) -> None:
    import torch

    from pipelines.layers.attention import packed_attention
    from pipelines.layers.bounds import SampleBounds

    generator = torch.Generator("cuda").manual_seed(3)

    def drawn(count: int) -> Any:
        shape = (1, count, sum(lengths), size)
        return (
            torch.randn(shape, generator=generator, device="cuda")
            .to(getattr(torch, dtype))
            .requires_grad_()
        )

    query, key, value = given = drawn(heads), drawn(kv_heads), drawn(kv_heads)
    q, k, v = exact = [tensor.detach().float().requires_grad_() for tensor in given]
    bounds = SampleBounds.of(torch.tensor(lengths, device="cuda"))
    out, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, scaling=SCALE, bounds=bounds
    )
    expected = block_masked(q, k, v, lengths)
    weights = torch.randn(expected.shape, generator=generator, device="cuda")
    (out.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    tolerance = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 5e-3}[
        dtype
    ]  # fp32 products may run as TF32
    _close(out, expected, tolerance)
    for tensor, reference in zip(given, exact, strict=True):
        _close(tensor.grad, reference.grad, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2)])
def test_kernels_for_short_samples_equal_attention_after_rotary(
    dtype: str, size: int, heads: int, kv_heads: int
) -> None:
    check_short(dtype, size, heads, kv_heads, [1, 63, 64, 65, 200, 700], "cuda")


def check_short(
    dtype: str, size: int, heads: int, kv_heads: int, lengths: list[int], device: str
) -> None:
    """Compare with the same numbers in fp64.

    Buffers contain NaN where the kernels must not read, or have yet to write. Rounding to nearest
    changes a tensor by 0.2 eps in norm. The output collects that from softmax's weights and its own
    values, together 0.24 eps; a gradient from those, the scores' gradient and its own values, 0.38
    eps. Allowed are 0.4 and 0.6 eps.
    """
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    from pipelines.layers.attention import padded_attention
    from pipelines.layers.bounds import SampleBounds
    from pipelines.layers.short_attention import short_backward, short_forward

    tokens, parts, precision = sum(lengths), (heads, kv_heads, kv_heads), getattr(torch, dtype)
    width, generator = sum(parts) * size, torch.Generator(device).manual_seed(4)

    def wider(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values.to(precision), (0, 32), value=torch.nan)[
            :, : values.shape[1]
        ]

    def drawn(columns: int) -> torch.Tensor:
        return torch.randn(tokens, columns, generator=generator, device=device).to(precision)

    bounds = SampleBounds.of(torch.tensor(lengths), device)
    angles = drawn(size // 2).float().repeat(1, 2)
    cos, sin = wider(angles.cos()), wider(angles.sin())
    exact = drawn(width).double().requires_grad_()
    q, k, v = exact.view(tokens, -1, size).split(parts, 1)
    q, k = apply_rotary_pos_emb(q, k, cos.double(), sin.double(), unsqueeze_dim=1)
    rotated = torch.cat([q, k, v], 1).flatten(1)
    qkv = wider(rotated.detach())
    rotated = rotated + (qkv - rotated).detach()  # rounded, as the kernels read it
    q, k, v = rotated.view(tokens, -1, size).split(parts, 1)
    expected, d_out = padded_attention(q, k, v, bounds, SCALE).flatten(1), drawn(heads * size)
    expected.backward(d_out.double())

    out, lse = short_forward(qkv, heads, heads // kv_heads, bounds.blocks, SCALE)
    buffer = torch.full((tokens, width + 32), torch.nan, dtype=precision, device=device)
    d_qkv, tables = buffer[:, :width], (cos, sin)
    short_backward(d_out, qkv, out, lse, tables, heads // kv_heads, bounds.blocks, SCALE, d_qkv)
    step = max(0.2 * torch.finfo(precision).eps, 1e-6)
    _close(out, expected, 2 * step)
    columns = [count * size for count in parts]
    for actual, gradient in zip(
        d_qkv.split(columns, 1), cast(Any, exact.grad).split(columns, 1), strict=True
    ):
        _close(actual, gradient, 3 * step)
    assert buffer[:, width:].isnan().all()


def _close(actual: torch.Tensor | None, expected: torch.Tensor | None, tolerance: float) -> None:
    """The difference is small in norm, relative to the expected tensor, and in every element."""
    assert actual is not None and expected is not None
    difference = actual.float() - expected
    assert difference.norm() <= tolerance * expected.norm()
    assert difference.abs().max() <= 5 * tolerance * expected.abs().max()
