"""Frozen linears with a common input as one matrix product: plain, NF4 or float8.

N = the sum of their output widths, K = the input width, T = tokens, R = the adapters' ranks. The A
[R, K] of adapters are further rows of the frozen weights: x [W; A]^T is [T, N + R], so x A^T needs
no pass over x of its own. In the backward [dy, grad_xa] [W; A] is dx with the adapters' part
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.layers.fp8 import Fp8Linear, scaled_product


class FrozenLinears:
    """x [T, K] -> x W^T + b [T, N], and its backward, for the linears' weights stacked to W [N, K].

    Plain and float8 weights move into one buffer, of which the linears keep views; NF4 weights are
    dequantized into a buffer for each product. With `stack=False` plain weights stay where they
    are: ZeRO-3 gathers and frees each parameter by itself, so no buffer may contain several of
    them. `padding_rows` is the number of rows that the buffer of plain weights has for an A. Raises
    ValueError when the linears differ in kind, or are of an unknown kind.
    """

    def __init__(self, linears: Sequence[Any], stack: bool, padding_rows: int = 0) -> None:
        kinds = {kind_of(linear) for linear in linears}
        if len(kinds) != 1 or "" in kinds:
            raise ValueError(
                f"cannot multiply {[type(linear).__name__ for linear in linears]} in one product"
            )
        (self.kind,) = kinds
        self.linears, self.widths = list(linears), [linear.out_features for linear in linears]
        self._stacked: torch.Tensor | None = None  # plain weights and rows for A: [N + R, K]
        if self.kind == "fp8":
            self._stack_fp8()
        elif self.kind == "plain" and stack:
            self._stacked = _stack_parameters([linear.weight for linear in linears], padding_rows)

    def _stack_fp8(self) -> None:
        self._by_out = _stack_parameters([linear.weight for linear in self.linears])
        self._by_in = torch.cat([linear.transposed for linear in self.linears], 1)
        for linear, part in zip(self.linears, self._by_in.split(self.widths, 1), strict=True):
            linear.transposed = part
        self._scale_out = torch.cat([linear.scale_out for linear in self.linears])
        self._scale_in = self.linears[0].scale_in
        # dy W sums over all outputs, so an input needs the same scale in every one of the linears.
        if not all(torch.equal(linear.scale_in, self._scale_in) for linear in self.linears):
            raise ValueError(
                "float8 linears with a common input have transposed copies of different scales"
            )

    @property
    def width(self) -> int:
        """N."""
        return sum(self.widths)

    def forward(
        self, x: torch.Tensor, a: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [T, K] -> x W^T + b [T, N] and, with a [R, K], x a^T [T, R].

        Where one product computes both, they are views of one buffer [T, N + R].
        """
        if a is None or not self._can_append(a):
            y, xa = self._product(x), None if a is None else x @ a.T
        else:
            if self._stacked is not None:
                # A trains, so its rows are copied in before every forward.
                self._stacked[self.width :].copy_(a)
            y_and_xa = x @ self._weight(x.dtype, a).T
            y, xa = y_and_xa[:, : self.width], y_and_xa[:, self.width :]
        if any(linear.bias is not None for linear in self.linears):
            y += torch.cat([self._bias(linear) for linear in self.linears]).to(y.dtype)
        return y, xa

    def backward(
        self, dy: torch.Tensor, grad_xa: torch.Tensor | None = None, a: torch.Tensor | None = None
    ) -> torch.Tensor:
        """dy [T, N] -> dx [T, K]; with grad_xa [T, R] and a [R, K], grad_xa a is included.

        It is part of the same product if dy and grad_xa are the columns of one buffer. `a` must be
        that of the last forward: the buffer of plain weights still has its rows.
        """
        if grad_xa is None or a is None:
            return self._backward_product(dy)
        both = _as_one_view(dy, grad_xa)
        if both is None or not self._can_append(a):
            return self._backward_product(dy).addmm_(grad_xa, a)
        return both @ self._weight(dy.dtype, a)

    def gradient_buffers(
        self, x: torch.Tensor, a: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Uninitialized dy [T, N] and grad_xa [T, R], as columns of one buffer where that helps."""
        if not self._can_append(a):
            return x.new_empty(len(x), self.width), x.new_empty(len(x), len(a))
        both = x.new_empty(len(x), self.width + len(a))
        return both[:, : self.width], both[:, self.width :]

    def _can_append(self, a: torch.Tensor) -> bool:
        """True if a's rows can be below W's in one product.

        Rows of float8 weights would need scales of their own.
        """
        return self.kind == "nf4" or (
            self._stacked is not None and len(self._stacked) == self.width + len(a)
        )

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "fp8":
            return scaled_product(x, self._by_out, self._scale_out)
        if self.kind == "nf4" or self._stacked is not None:
            return x @ self._weight(x.dtype)[: self.width].T
        # Separate weights: each product writes its columns of y, so nothing is concatenated.
        y = x.new_empty(len(x), self.width)
        for linear, part in zip(self.linears, y.split(self.widths, 1), strict=True):
            torch.mm(x, linear.weight.T, out=part)
        return y

    def _backward_product(self, dy: torch.Tensor) -> torch.Tensor:
        if self.kind == "fp8":
            return scaled_product(dy, self._by_in, self._scale_in)
        if self.kind == "nf4" or self._stacked is not None:
            return dy @ self._weight(dy.dtype)[: self.width]
        dx = None
        for linear, part in zip(self.linears, dy.split(self.widths, 1), strict=True):
            dx = part @ linear.weight if dx is None else dx.addmm_(part, linear.weight)
        assert dx is not None
        return dx

    def _weight(self, dtype: torch.dtype, a: torch.Tensor | None = None) -> torch.Tensor:
        """[W; a] of [N + R, K]. Plain weights come with the rows of the last forward's a."""
        if self._stacked is not None:
            return self._stacked
        import bitsandbytes.functional as bnb

        first, rows_of_a = self.linears[0], 0 if a is None else len(a)
        weight = torch.empty(
            self.width + rows_of_a, first.in_features, dtype=dtype, device=first.weight.device
        )
        if a is not None:
            weight[self.width :].copy_(a)
        for linear, part in zip(self.linears, weight[: self.width].split(self.widths), strict=True):
            state = linear.weight.quant_state
            if state.dtype == dtype and part.is_cuda:
                bnb.dequantize_4bit(linear.weight.data, state, out=part)  # saves one copy
            else:
                part.copy_(bnb.dequantize_4bit(linear.weight.data, state))
        return weight

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
    # The exact type: a subclass, such as Linear8bitLt, computes something else.
    if type(linear) is torch.nn.Linear:
        return "plain"
    return "nf4" if type(linear).__name__ == "Linear4bit" else ""


def _as_one_view(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor | None:
    """One view of both when they are the left and right columns of one buffer, else None."""
    width_left, width_right = left.shape[1], right.shape[1]
    if left.stride() != (width_left + width_right, 1) or right.stride() != left.stride():
        return None
    # Equal strides alone do not prove that both are parts of one buffer.
    if right.data_ptr() != left.data_ptr() + width_left * left.element_size():
        return None
    return left.as_strided((len(left), width_left + width_right), left.stride())


def _stack_parameters(
    parameters: Sequence[torch.nn.Parameter], padding_rows: int = 0
) -> torch.Tensor:
    """One buffer of all parameters, below each other, of which they become views.

    `padding_rows` more rows of zeros follow.
    """
    first = parameters[0].data
    if len(parameters) == 1 and not padding_rows:
        return first
    stacked = torch.cat(
        [
            *(parameter.data for parameter in parameters),
            first.new_zeros(padding_rows, *first.shape[1:]),
        ]
    )
    # Assigning `.data` keeps the Parameter objects, which modules and optimizers refer to.
    sizes = [len(parameter) for parameter in parameters]
    for parameter, part in zip(parameters, stacked[: sum(sizes)].split(sizes), strict=True):
        parameter.data = part
    return stacked
