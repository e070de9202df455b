"""Frozen linears that read the same input, as one matrix product: plain, NF4 or float8.

N = the sum of their output widths, K = the input width, T = tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.model.fp8 import Fp8Linear, scaled_product


class FrozenLinears:
    """x [T, K] -> x W^T + b [T, N], and back, for the linears' weights laid below each other, W [N, K].

    Plain and float8 weights move into one buffer, of which the linears keep views; NF4 weights are dequantized into one
    for each product. With `stack=False` plain weights stay where they are, as ZeRO-3 needs, whose weights come and go.
    Raises ValueError when the linears differ in kind, or are of none that is known.
    """

    def __init__(self, linears: Sequence[Any], stack: bool) -> None:
        kinds = {kind_of(linear) for linear in linears}
        if len(kinds) != 1 or "" in kinds:
            raise ValueError(f"no one product for {[type(linear).__name__ for linear in linears]}")
        (self.kind,) = kinds
        self.linears, self.widths = list(linears), [linear.out_features for linear in linears]
        self._whole: torch.Tensor | None = None
        if self.kind == "fp8":
            self._stack_fp8()
        elif self.kind == "plain" and stack:
            self._whole = _joined([linear.weight for linear in linears])

    def _stack_fp8(self) -> None:
        self._out = _joined([linear.weight for linear in self.linears])
        self._in = torch.cat([linear.transposed for linear in self.linears], 1)
        for linear, part in zip(self.linears, self._in.split(self.widths, 1), strict=True):
            linear.transposed = part
        self._scale_out = torch.cat([linear.scale_out for linear in self.linears])
        self._scale_in = self.linears[0].scale_in
        if not all(torch.equal(linear.scale_in, self._scale_in) for linear in self.linears):
            raise ValueError("float8 linears of one input whose transposed copies have different scales")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> [T, N]."""
        if self.kind == "fp8":
            y = scaled_product(x, self._out, self._scale_out)
        elif self.kind == "nf4" or self._whole is not None:
            y = x @ self._weight(x.dtype).T
        else:
            y = x.new_empty(len(x), sum(self.widths))
            for linear, part in zip(self.linears, y.split(self.widths, 1), strict=True):
                torch.mm(x, linear.weight.T, out=part)
        if any(linear.bias is not None for linear in self.linears):
            y += torch.cat([self._bias(linear) for linear in self.linears]).to(y.dtype)
        return y

    def backward(self, dy: torch.Tensor) -> torch.Tensor:
        """dy [T, N] -> dx [T, K]."""
        if self.kind == "fp8":
            return scaled_product(dy, self._in, self._scale_in)
        if self.kind == "nf4" or self._whole is not None:
            return dy @ self._weight(dy.dtype)
        dx = None
        for linear, part in zip(self.linears, dy.split(self.widths, 1), strict=True):
            dx = part @ linear.weight if dx is None else dx.addmm_(part, linear.weight)
        assert dx is not None
        return dx

    def _weight(self, dtype: torch.dtype) -> torch.Tensor:
        if self._whole is not None:
            return self._whole
        import bitsandbytes.functional as bnb

        whole = torch.empty(
            sum(self.widths), self.linears[0].in_features, dtype=dtype, device=self.linears[0].weight.device
        )
        for linear, part in zip(self.linears, whole.split(self.widths), strict=True):
            state = linear.weight.quant_state
            if state.dtype == dtype and part.is_cuda:
                bnb.dequantize_4bit(linear.weight.data, state, out=part)
            else:
                part.copy_(bnb.dequantize_4bit(linear.weight.data, state))
        return whole

    def _bias(self, linear: Any) -> torch.Tensor:
        return linear.bias if linear.bias is not None else torch.zeros(linear.out_features, device=linear.weight.device)


def kind_of(linear: Any) -> str:
    """plain, nf4 or fp8; "" for any other module."""
    if isinstance(linear, Fp8Linear):
        return "fp8"
    if type(linear) is torch.nn.Linear:
        return "plain"
    return "nf4" if type(linear).__name__ == "Linear4bit" else ""


def _joined(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """One buffer of all, below each other, of which the parameters become views."""
    if len(parameters) == 1:
        return parameters[0].data
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(p) for p in parameters]), strict=True):
        parameter.data = part
    return whole
