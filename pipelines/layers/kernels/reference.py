"""What every kernel computes, in plain torch: fp32 inside, rounded once to the dtype of the result."""

from __future__ import annotations

import torch

from pipelines.layers.kernels import FP8_MAX, LowRank


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, h] / rms(x) * weight [h], and 1 / rms [T] in fp32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    rstd = torch.rsqrt(x.float().square().mean(-1) + eps)
    return (x.float() * rstd[..., None] * weight.float()).to(x.dtype), rstd


def rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """dx [T, h] for a frozen weight; `residual` [T, h] is what x gets from elsewhere, added in the same pass."""
    unit, scaled = x.float() * rstd[..., None], dy.float() * weight.float()
    dx = rstd[..., None] * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))
    return (dx if residual is None else dx + residual.float()).to(x.dtype)


def add(y: torch.Tensor, added: LowRank | None, residual: torch.Tensor) -> torch.Tensor:
    """y [T, n] + added + residual [T, n]."""
    return (_plus(y, added) + residual.float()).to(y.dtype)


def swiglu(
    gate_up: torch.Tensor, gate_added: LowRank | None, up_added: LowRank | None
) -> torch.Tensor:
    """silu(gate) * up, of gate_up [T, 2 i] with the gates in front -> [T, i] (Shazeer 2020, arXiv:2002.05202).

    Both are read with what the adapters add to them; gate_up itself stays as it is.
    """
    gate, up = gate_up.chunk(2, -1)
    return (torch.nn.functional.silu(_plus(gate, gate_added)) * _plus(up, up_added)).to(
        gate_up.dtype
    )


def swiglu_backward_(
    d_act: torch.Tensor,
    gate_up: torch.Tensor,
    gate_added: LowRank | None,
    up_added: LowRank | None,
    d_act_added: LowRank | None,
    d_low: torch.Tensor | None,
) -> None:
    """In place: d_act [T, i] becomes the activation silu(gate) * up again, gate_up [T, 2 i] its own gradient.

    `d_low` [T, R] becomes the gradient of the `low` of gate_added and, behind it, of up_added; the rest of R zeros.
    """
    gate, up = gate_up.chunk(2, -1)
    gate, up, d = _plus(gate, gate_added), _plus(up, up_added), _plus(d_act, d_act_added)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    gradient = torch.cat([d * up * (sigmoid + silu * (1 - sigmoid)), d * silu], -1)
    d_act.copy_(silu * up)
    gate_up.copy_(gradient)
    if d_low is not None:
        found = [
            part.float() @ (added.scale * added.weight.float())
            for part, added in zip(gate_up.chunk(2, -1), (gate_added, up_added), strict=True)
            if added is not None
        ]
        d_low.zero_()
        d_low[:, : sum(part.shape[1] for part in found)] = torch.cat(found, 1)


def add_rotate_(
    y: torch.Tensor,
    heads: int,
    added: LowRank | None,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    norm: tuple[torch.Tensor, float] | None = None,
    out: torch.Tensor | None = None,
) -> None:
    """y [T, heads D] += added in place. `out`, or y itself, becomes y with every head normed by `norm` (weight [D], eps)
    and turned by `tables` (cos, sin [T, D]), each if given: see `rms_norm` and `rotate`.
    """
    y.copy_(_plus(y, added))
    found = y.unflatten(1, (heads, -1))
    found = found if norm is None else rms_norm(found, *norm)[0]
    into = (y if out is None else out).unflatten(1, (heads, -1))
    if tables is not None:
        rotate(found, into, *tables)
    elif into is not found:
        into.copy_(found)


def head_norm_backward_(
    d: torch.Tensor, y: torch.Tensor, heads: int, norm: tuple[torch.Tensor, float]
) -> None:
    """d [T, heads D], the gradient of y's heads normed by `norm` (weight [D], eps), becomes that of y [T, heads D]."""
    whole, found = y.unflatten(1, (heads, -1)), d.unflatten(1, (heads, -1))
    d.copy_(rms_norm_backward(found, whole, norm[0], rms_norm(whole, *norm)[1], None).flatten(1))


def rotate(
    source: torch.Tensor,
    out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    inverse: bool = False,
) -> None:
    """Rotary embedding of source [T, heads, D] into `out`, which may be the same (Su et al. 2021, arXiv:2104.09864).

    cos and sin are [T, D] with two equal halves, as transformers gives them; `inverse` turns back.
    """
    half = source.shape[-1] // 2
    c, s = (table[:, None, :half].float() for table in (cos, sin))
    first, second = source.float().split(half, -1)
    s = -s if inverse else s
    out.copy_(torch.cat([first * c - second * s, second * c + first * s], -1))


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, h] as float8_e4m3fn and one fp32 scale a row [T, 1], so that x = fp8 * scale."""
    scale = (x.float().abs().amax(-1, keepdim=True) / FP8_MAX).clamp(min=1e-12)
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def _plus(y: torch.Tensor, added: LowRank | None) -> torch.Tensor:
    if added is None:
        return y.float()
    return y.float() + added.scale * (added.low.float() @ added.weight.float().T)


def cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Losses [M] in fp32 of logits [M, V]; the logits become the gradient of sum(weights * losses)."""
    logp = logits.float().log_softmax(-1)
    losses = -logp.gather(1, targets[:, None])[:, 0]
    gradient = logp.exp()
    gradient[torch.arange(len(targets)), targets] -= 1
    logits.copy_(gradient * weights[:, None])
    return losses
