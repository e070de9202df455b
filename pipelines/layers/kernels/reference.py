"""The definition of every kernel in torch: fp32 inside, rounded once to the result's dtype."""

from __future__ import annotations

import torch

from pipelines.layers.kernels import FP8_MAX, LowRank


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm (Zhang & Sennrich 2019, arXiv:1910.07467): x / rms(x) * weight, and 1 / rms.

    x [T, h], weight [h] -> [T, h] in x's dtype and [T] in fp32.
    """
    rstd = torch.rsqrt(x.float().square().mean(-1) + eps)
    return (x.float() * rstd[..., None] * weight.float()).to(x.dtype), rstd


def rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """dy [T, h] -> dx [T, h] of `rms_norm` for a frozen weight.

    `residual` [T, h], the gradient of the skip connection around the norm, is added in the same
    pass.
    """
    unit, scaled = x.float() * rstd[..., None], dy.float() * weight.float()
    dx = rstd[..., None] * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))
    return (dx if residual is None else dx + residual.float()).to(x.dtype)


def add(y: torch.Tensor, update: LowRank | None, residual: torch.Tensor) -> torch.Tensor:
    """y [T, n] + update + residual [T, n] -> [T, n]."""
    return (_plus(y, update) + residual.float()).to(y.dtype)


def swiglu(
    gate_up: torch.Tensor, gate_update: LowRank | None, up_update: LowRank | None
) -> torch.Tensor:
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): silu(gate) * up. gate_up [T, 2 i] -> [T, i].

    The gates are the first i columns. The updates are added while reading; gate_up does not change.
    """
    gate, up = gate_up.chunk(2, -1)
    return (torch.nn.functional.silu(_plus(gate, gate_update)) * _plus(up, up_update)).to(
        gate_up.dtype
    )


def swiglu_backward_(
    d_act: torch.Tensor,
    gate_up: torch.Tensor,
    gate_update: LowRank | None,
    up_update: LowRank | None,
    d_act_update: LowRank | None,
    grad_xa: torch.Tensor | None,
) -> None:
    """The backward of `swiglu`, in place.

    d_act [T, i], the activation's gradient, becomes the activation itself, and gate_up [T, 2 i] its
    own gradient. `grad_xa` [T, R] becomes the gradient of gate_update.left, then of up_update.left;
    the rest of its columns become zeros. `d_act_update` is added to d_act while reading.
    """
    gate, up = gate_up.chunk(2, -1)
    gate, up, d = _plus(gate, gate_update), _plus(up, up_update), _plus(d_act, d_act_update)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    gradient = torch.cat([d * up * (sigmoid + silu * (1 - sigmoid)), d * silu], -1)
    d_act.copy_(silu * up)
    gate_up.copy_(gradient)
    if grad_xa is not None:
        parts = [
            part.float() @ (update.scale * update.right.float())
            for part, update in zip(gate_up.chunk(2, -1), (gate_update, up_update), strict=True)
            if update is not None
        ]
        grad_xa.zero_()
        grad_xa[:, : sum(part.shape[1] for part in parts)] = torch.cat(parts, 1)


def add_rotate_(
    y: torch.Tensor,
    heads: int,
    update: LowRank | None,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    norm: tuple[torch.Tensor, float] | None = None,
    out: torch.Tensor | None = None,
) -> None:
    """Add `update` to y [T, heads D] in place, then norm and rotate its heads.

    The heads, normed by `norm` (weight [D], eps) and rotated by `tables` (cos, sin [T, D]), each if
    given, are written into `out` or, without it, into y. See `rms_norm` and `rotate`.
    """
    y.copy_(_plus(y, update))
    result = y.unflatten(1, (heads, -1))
    result = result if norm is None else rms_norm(result, *norm)[0]
    target = (y if out is None else out).unflatten(1, (heads, -1))
    if tables is not None:
        rotate(result, target, *tables)
    elif target is not result:
        target.copy_(result)


def head_norm_backward_(
    d: torch.Tensor, y: torch.Tensor, heads: int, norm: tuple[torch.Tensor, float]
) -> None:
    """The backward of a norm of heads, in place, with `norm` as (weight [D], eps).

    d [T, heads D], the gradient of the normed heads, becomes that of y [T, heads D], the norm's
    input.
    """
    values, gradients = y.unflatten(1, (heads, -1)), d.unflatten(1, (heads, -1))
    rstd = rms_norm(values, *norm)[1]
    d.copy_(rms_norm_backward(gradients, values, norm[0], rstd, None).flatten(1))


def rotate(
    source: torch.Tensor,
    out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    inverse: bool = False,
) -> None:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of source [T, heads, D] into `out`.

    `out` may be `source`. cos and sin are [T, D] with two equal halves, as transformers computes
    them; `inverse` rotates back.
    """
    half = source.shape[-1] // 2
    c, s = (table[:, None, :half].float() for table in (cos, sin))
    first, second = source.float().split(half, -1)
    s = -s if inverse else s
    out.copy_(torch.cat([first * c - second * s, second * c + first * s], -1))


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, h] as float8_e4m3fn [T, h] and an fp32 scale per row [T, 1]: x is about fp8 * scale."""
    scale = (x.float().abs().amax(-1, keepdim=True) / FP8_MAX).clamp(min=1e-12)
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def _plus(y: torch.Tensor, update: LowRank | None) -> torch.Tensor:
    if update is None:
        return y.float()
    return y.float() + update.scale * (update.left.float() @ update.right.float().T)


def cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Losses [M] in fp32 of logits [M, V] for targets [M].

    In place the logits become the gradient of sum(weights * losses), weights [M].
    """
    logp = logits.float().log_softmax(-1)
    losses = -logp.gather(1, targets[:, None])[:, 0]
    gradient = logp.exp()
    gradient[torch.arange(len(targets)), targets] -= 1
    logits.copy_(gradient * weights[:, None])
    return losses
