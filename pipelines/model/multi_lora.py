"""Many LoRA adapters on one frozen base, selected per request row: one pair of GEMMs per layer.

For a linear layer y = W0 x the adapters in use are stacked: A = [A_1; A_2; ...] of [R, in] and
B = [s_1 B_1, s_2 B_2, ...]^T of [R, out], with R the sum of their ranks and s their scales. Then
h = A x is set to zero at the ranks of other rows' adapters, and y += B^T h. The extra ranks cost
little compared with W0, and a layer stays two GEMMs for any mix of rows. Running the adapters in
turn would cost two GEMMs each and a gather of their rows. S-LoRA (Sheng et al. 2023,
arXiv:2311.03285) serves many adapters on one base with kernels of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.adapter_format.keys import pair_keys
from pipelines.adapter_format.peft_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    format_errors_as_user_errors,
    read_config,
    read_tensors,
)
from pipelines.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Adapter:
    """By module name: A [r, in] and, scaled and transposed, B [r, out]."""

    rank: int
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]


class MultiLora:
    """Adapters on a base model, which keeps its own modules and weights; in the base's dtype.

    After `use`, row i of a forward's batch runs with the i-th adapter; rows without an adapter give
    the base's output bit for bit. Supports plain LoRA on linear layers, as the registry does.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._adapters: dict[str, _Adapter] = {}
        self._hooked: set[str] = set()
        self._names: tuple[str | None, ...] = ()
        self._stacked: tuple[str, ...] = ()
        self._stacks: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._foreign: torch.Tensor | None = None  # [n, 1, R]: True at ranks of other adapters

    def add(self, name: str, folder: Path) -> None:
        """Load PEFT's two files as `name`.

        Raises UserError when they are not plain LoRA or do not fit the base; then nothing changes.
        """
        adapter = _load(folder, self._model)
        for path in adapter.pairs.keys() - self._hooked:
            self._model.get_submodule(path).register_forward_hook(partial(self._add_to, path))
            self._hooked.add(path)
        self._adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Unload an adapter. This also forgets the rows of the last `use`."""
        del self._adapters[name]
        self._names, self._foreign = (), None
        if name in self._stacked:
            self._stacked, self._stacks = (), {}

    def use(self, names: Sequence[str | None]) -> None:
        """Set the adapter of each row of the next forwards; None is the base alone.

        Raises KeyError for an unknown name.
        """
        import torch

        names = tuple(names)
        if names == self._names:
            return
        distinct = dict.fromkeys(name for name in names if name is not None)
        if not distinct:
            self._foreign = None
        else:
            # A stack that contains more adapters than needed is reused: the mask hides the others.
            if not distinct.keys() <= set(self._stacked):
                self._stack(tuple(distinct))
            owners = [name for name in self._stacked for _ in range(self._adapters[name].rank)]
            index = {name: i for i, name in enumerate(self._stacked)}
            columns = torch.tensor([index[owner] for owner in owners], device=self._model.device)
            rows = torch.tensor(
                [-1 if name is None else index[name] for name in names], device=self._model.device
            )
            self._foreign = rows[:, None, None] != columns
        self._names = names

    def _stack(self, names: tuple[str, ...]) -> None:
        """Concatenate the adapters' A and B per module; zeros where an adapter lacks the module."""
        import torch

        adapters = [self._adapters[name] for name in names]
        self._stacks = {}
        for path in dict.fromkeys(path for adapter in adapters for path in adapter.pairs):
            some_a, some_b = next(a.pairs[path] for a in adapters if path in a.pairs)
            pairs = [
                a.pairs.get(path)
                or (
                    some_a.new_zeros(a.rank, some_a.shape[1]),
                    some_b.new_zeros(a.rank, some_b.shape[1]),
                )
                for a in adapters
            ]
            self._stacks[path] = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
        self._stacked = names

    def _add_to(
        self, path: str, _module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor
    ) -> torch.Tensor:
        """Forward hook of a linear layer with input [n, q, in] and output [n, q, out].

        Some layers flatten n and q into their product; the rows come one after another then, too.
        """
        if self._foreign is None or path not in self._stacks:
            return output
        a, b = self._stacks[path]
        hidden = (inputs[0].to(a.dtype) @ a.T).view(len(self._foreign), -1, a.shape[0])
        # masked_fill, because a product with 0 would keep a NaN or infinity of another row's
        # adapter.
        hidden = hidden.masked_fill(self._foreign, 0)
        return (
            output.view(-1, output.shape[-1])
            .addmm_(hidden.flatten(0, 1).to(output.dtype), b.to(output.dtype))
            .view_as(output)
        )


def _load(folder: Path, model: PreTrainedModel) -> _Adapter:
    """Raises UserError with the name of the missing file or of the tensor that does not fit."""
    with format_errors_as_user_errors():
        config, tensors = read_config(folder), read_tensors(folder)
    if config.beyond_plain_lora:
        raise UserError(
            f"{folder / CONFIG_FILE}: {config.beyond_plain_lora[0]} is set, and only plain LoRA of "
            "one rank and one scale can be served"
        )
    try:
        keys = pair_keys(tensors)
    except ValueError as error:
        raise UserError(f"{folder / WEIGHTS_FILE}: not a plain LoRA adapter: {error}") from error
    layers = {
        name: module for name, module in model.named_modules() if hasattr(module, "in_features")
    }
    pairs = {}
    for name, (key_a, key_b) in keys.items():
        a, b = tensors[key_a], tensors[key_b]
        layer: Any = layers.get(name)
        if layer is None:
            raise UserError(
                f"{folder}: the adapter does not fit the base: {name} is not a linear layer of it"
            )
        width_in, width_out = layer.in_features, layer.out_features
        if a.shape != (config.r, width_in) or b.shape != (width_out, config.r):
            raise UserError(
                f"{folder}: the adapter does not fit the base: {name} maps {width_in} to "
                f"{width_out} "
                f"values, its A is {tuple(a.shape)}, its B {tuple(b.shape)} at r={config.r}"
            )
        pairs[name] = (
            a.to(model.device, model.dtype),
            (b * config.scale).T.to(model.device, model.dtype).contiguous(),
        )
    return _Adapter(config.r, pairs)
