"""Frozen linears that read the same input, as one matrix product: plain, NF4 or float8.

N = the sum of their output widths, K = the input width, T = tokens. Adapters' A [R, K] ride along as further rows of the
weights: x [W; A]^T is [T, N + R], so that what they need costs no pass over x of its own, nor dx one over dx.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.layers.fp8 import Fp8Linear, scaled_product


class FrozenLinears:
    """x [T, K] -> x W^T + b [T, N], and back, for the linears' weights laid below each other, W [N, K].

    Plain and float8 weights move into one buffer, of which the linears keep views; NF4 weights are dequantized into one
    for each product. With `stack=False` plain weights stay where they are, as ZeRO-3 needs, whose weights come and go.
    `room` is the R of the A that plain weights' buffer has place for. Raises ValueError when the linears differ in kind,
    or are of none that is known.
    """

    def __init__(self, linears: Sequence[Any], stack: bool, room: int = 0) -> None:
        kinds = {kind_of(linear) for linear in linears}
        if len(kinds) != 1 or "" in kinds:
            raise ValueError(f"no one product for {[type(linear).__name__ for linear in linears]}")
        (self.kind,) = kinds
        self.linears, self.widths = list(linears), [linear.out_features for linear in linears]
        self._whole: torch.Tensor | None = None
        if self.kind == "fp8":
            self._stack_fp8()
        elif self.kind == "plain" and stack:
            self._whole = _joined([linear.weight for linear in linears], room)

    def _stack_fp8(self) -> None:
        self._out = _joined([linear.weight for linear in self.linears])
        self._in = torch.cat([linear.transposed for linear in self.linears], 1)
        for linear, part in zip(self.linears, self._in.split(self.widths, 1), strict=True):
            linear.transposed = part
        self._scale_out = torch.cat([linear.scale_out for linear in self.linears])
        self._scale_in = self.linears[0].scale_in
        if not all(torch.equal(linear.scale_in, self._scale_in) for linear in self.linears):
            raise ValueError(
                "float8 linears of one input whose transposed copies have different scales"
            )

    @property
    def width(self) -> int:
        """N."""
        return sum(self.widths)

    def forward(
        self, x: torch.Tensor, a: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [T, K] -> x W^T + b [T, N] and, with a [R, K], x a^T [T, R]: one beside the other where one product gives both."""
        if a is None or not self._joins(a):
            y, low = self._forward(x), None if a is None else x @ a.T
        else:
            if self._whole is not None:
                self._whole[self.width :].copy_(a)
            both = x @ self._weight(x.dtype, a).T
            y, low = both[:, : self.width], both[:, self.width :]
        if any(linear.bias is not None for linear in self.linears):
            y += torch.cat([self._bias(linear) for linear in self.linears]).to(y.dtype)
        return y, low

    def backward(
        self, dy: torch.Tensor, d_low: torch.Tensor | None = None, a: torch.Tensor | None = None
    ) -> torch.Tensor:
        """dy [T, N] -> dx [T, K], d_low [T, R] a [R, K] added: in the same product where d_low lies beside dy.

        `a` is what the forward got, and no other forward came between: plain weights have its rows below them.
        """
        if d_low is None or a is None:
            return self._backward(dy)
        both = _beside(dy, d_low)
        if both is None or not self._joins(a):
            return self._backward(dy).addmm_(d_low, a)
        return both @ self._weight(dy.dtype, a)

    def gradient_room(self, x: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where to write dy [T, N] and d_low [T, R] so that they lie beside each other, if that helps."""
        if not self._joins(a):
            return x.new_empty(len(x), self.width), x.new_empty(len(x), len(a))
        both = x.new_empty(len(x), self.width + len(a))
        return both[:, : self.width], both[:, self.width :]

    def _joins(self, a: torch.Tensor) -> bool:
        """Whether one product can have a's rows below W's."""
        return self.kind == "nf4" or (
            self._whole is not None and len(self._whole) == self.width + len(a)
        )

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "fp8":
            return scaled_product(x, self._out, self._scale_out)
        if self.kind == "nf4" or self._whole is not None:
            return x @ self._weight(x.dtype)[: self.width].T
        y = x.new_empty(len(x), self.width)
        for linear, part in zip(self.linears, y.split(self.widths, 1), strict=True):
            torch.mm(x, linear.weight.T, out=part)
        return y

    def _backward(self, dy: torch.Tensor) -> torch.Tensor:
        if self.kind == "fp8":
            return scaled_product(dy, self._in, self._scale_in)
        if self.kind == "nf4" or self._whole is not None:
            return dy @ self._weight(dy.dtype)[: self.width]
        dx = None
        for linear, part in zip(self.linears, dy.split(self.widths, 1), strict=True):
            dx = part @ linear.weight if dx is None else dx.addmm_(part, linear.weight)
        assert dx is not None
        return dx

    def _weight(self, dtype: torch.dtype, a: torch.Tensor | None = None) -> torch.Tensor:
        """[W; a], [N + R, K]; plain weights lie there with the last forward's a."""
        if self._whole is not None:
            return self._whole
        import bitsandbytes.functional as bnb

        first, room = self.linears[0], 0 if a is None else len(a)
        whole = torch.empty(
            self.width + room, first.in_features, dtype=dtype, device=first.weight.device
        )
        if a is not None:
            whole[self.width :].copy_(a)
        for linear, part in zip(self.linears, whole[: self.width].split(self.widths), strict=True):
            state = linear.weight.quant_state
            if state.dtype == dtype and part.is_cuda:
                bnb.dequantize_4bit(linear.weight.data, state, out=part)
            else:
                part.copy_(bnb.dequantize_4bit(linear.weight.data, state))
        return whole

    def _bias(self, linear: Any) -> torch.Tensor:
        return (
            linear.bias
            if linear.bias is not None
            else torch.zeros(linear.out_features, device=linear.weight.device)
        )


def kind_of(linear: Any) -> str:
    """plain, nf4 or fp8; "" for any other module."""
    if isinstance(linear, Fp8Linear):
        return "fp8"
    if type(linear) is torch.nn.Linear:
        return "plain"
    return "nf4" if type(linear).__name__ == "Linear4bit" else ""


def _beside(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor | None:
    """One view of both when they are the left and the right columns of one buffer, else None."""
    rows, width, behind = len(left), left.shape[1], right.shape[1]
    if left.stride() != (width + behind, 1) or right.stride() != left.stride():
        return None
    if right.data_ptr() != left.data_ptr() + width * left.element_size():
        return None
    return left.as_strided((rows, width + behind), left.stride())


def _joined(parameters: Sequence[torch.nn.Parameter], room: int = 0) -> torch.Tensor:
    """One buffer of all, below each other, of which the parameters become views; `room` more rows of zeros behind them."""
    first = parameters[0].data
    if len(parameters) == 1 and not room:
        return first
    whole = torch.cat(
        [*(parameter.data for parameter in parameters), first.new_zeros(room, *first.shape[1:])]
    )
    for parameter, part in zip(
        parameters, whole.split([len(p) for p in parameters] + [room] * bool(room)), strict=False
    ):
        parameter.data = part
    return whole
