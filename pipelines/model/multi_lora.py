"""Many LoRA adapters on one frozen base, chosen row by row: the ranks of all adapters in a batch are one pair of GEMMs.

For a linear layer y = W0 x, the adapters in use stand side by side: A = [A_1; A_2; ...] of [R, in] and
B = [s_1 B_1, s_2 B_2, ...]^T of [R, out], R the sum of their ranks and s their scales. Then h = A x is set to zero at the
ranks that are not the row's own, and y += B^T h. The extra ranks cost little beside W0, and the layer stays two GEMMs
however the rows are mixed, where one adapter after the other costs two each and the gathering of its rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.adapter_format.folder import CONFIG_FILE, WEIGHTS_FILE
from pipelines.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."  # PEFT's own, before the base's module names


@dataclass(frozen=True)
class _Adapter:
    """Per module path A [r, in] and, scaled and transposed, B [r, out]."""

    rank: int
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]


class MultiLora:
    """Adapters beside a base model, which keeps its own modules and weights; in the base's dtype.

    After `use`, row i of a forward's batch runs with the i-th adapter; rows without one give what the base gives, bit
    for bit. Plain LoRA on linear layers only, as the registry takes it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._adapters: dict[str, _Adapter] = {}
        self._hooked: set[str] = set()
        self._names: tuple[str | None, ...] = ()
        self._stacked: tuple[str, ...] = ()
        self._stacks: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._foreign: torch.Tensor | None = None  # [n, 1, R]: ranks that are not the row's own

    def add(self, name: str, folder: Path) -> None:
        """Load PEFT's two files under `name`. Raises UserError when they are no plain LoRA or do not fit the base."""
        adapter = _read(folder, self._model)
        for path in adapter.pairs.keys() - self._hooked:
            self._model.get_submodule(path).register_forward_hook(partial(self._add_to, path))
            self._hooked.add(path)
        self._adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Forget an adapter. The rows of the last `use` are forgotten with it."""
        del self._adapters[name]
        self._names, self._foreign = (), None
        if name in self._stacked:
            self._stacked, self._stacks = (), {}

    def use(self, names: Sequence[str | None]) -> None:
        """Give each row of the next forwards its adapter, None for the base alone. Raises KeyError for an unknown one."""
        import torch

        names = tuple(names)
        if names == self._names:
            return
        wanted = dict.fromkeys(name for name in names if name is not None)
        if not wanted:
            self._foreign = None
        else:
            if not wanted.keys() <= set(self._stacked):
                self._stack(tuple(wanted))
            owners = [name for name in self._stacked for _ in range(self._adapters[name].rank)]
            place = {name: i for i, name in enumerate(self._stacked)}
            columns = torch.tensor([place[owner] for owner in owners], device=self._model.device)
            rows = torch.tensor(
                [-1 if name is None else place[name] for name in names], device=self._model.device
            )
            self._foreign = rows[:, None, None] != columns
        self._names = names

    def _stack(self, names: tuple[str, ...]) -> None:
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
        """Forward hook of a linear layer: [n, q, in] went in and [n, q, out] came out."""
        if self._foreign is None or path not in self._stacks:
            return output
        a, b = self._stacks[path]
        hidden = (inputs[0].to(a.dtype) @ a.T).masked_fill(
            self._foreign, 0
        )  # not times 0: that keeps another's NaN
        return (
            output.flatten(0, 1)
            .addmm_(hidden.flatten(0, 1).to(output.dtype), b.to(output.dtype))
            .view_as(output)
        )


def _read(folder: Path, model: PreTrainedModel) -> _Adapter:
    """Raises UserError naming what is missing or does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        kind, r, alpha = config["peft_type"], int(config["r"]), float(config["lora_alpha"])
        tensors = load_file(str(folder / WEIGHTS_FILE))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: not an adapter that can be loaded: {' '.join(str(error).split())}"
        ) from error
    if kind != "LORA" or any(
        config.get(key) for key in ("use_dora", "rank_pattern", "alpha_pattern")
    ):
        raise UserError(
            f"{folder / CONFIG_FILE}: only plain LoRA of one rank and one scale can be served"
        )
    scale = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    layers = {
        name: module for name, module in model.named_modules() if hasattr(module, "in_features")
    }
    pairs = {}
    for name in sorted({name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in tensors}):
        a, b = (tensors.pop(f"{_PREFIX}{name}.lora_{side}.weight", None) for side in "AB")
        layer: Any = layers.get(name)
        if a is None or b is None or layer is None:
            raise UserError(
                f"{folder}: the adapter does not fit the base: {name} is no linear layer of it, or half of it"
            )
        if a.shape != (r, layer.in_features) or b.shape != (layer.out_features, r):
            raise UserError(
                f"{folder}: the adapter does not fit the base: {name} is {layer.in_features} -> {layer.out_features}, "
                f"its A is {tuple(a.shape)}, its B {tuple(b.shape)} at r={r}"
            )
        pairs[name] = (
            a.to(model.device, model.dtype),
            (b * scale).T.to(model.device, model.dtype).contiguous(),
        )
    if tensors:
        raise UserError(f"{folder}: {min(tensors)} is not part of a plain LoRA adapter")
    return _Adapter(r, pairs)
