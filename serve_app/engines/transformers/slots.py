"""A key-value cache of fixed slots in which every row is at its own position.

Shapes: S slots, n rows in use (always the first n slots), K key-value heads, D head size, q new
tokens of each row. A step writes q keys at each row's positions and reads, through views, the first
`span` positions of the n rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Cache


class SlotCache(Cache):
    """Keys [S, K, max_tokens, D] and values of each layer, in that layer's own heads and sizes.

    `begin` selects the rows and positions that the next forward writes. A layer's tensors are
    allocated when it is first written, so that `check_cache` allocates them all.
    """

    def __init__(self, slots: int, max_tokens: int) -> None:
        super().__init__(layers=[])
        self.num_slots, self.max_tokens = slots, max_tokens
        self._kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rows = slice(0, 0)
        self._positions = torch.zeros(0, 1, dtype=torch.int64)
        self._span = 0

    def begin(self, first_row: int, positions: torch.Tensor) -> torch.Tensor:
        """Prepare the forward of the rows from `first_row` on; `positions` of their tokens, [n, q].

        Returns the attention mask, bool [n, 1, q, span]: a token sees the positions of its row up
        to its own, whatever the order of the columns. Padding has positions after the prompt's
        end, so that no token of the prompt sees it and the row's next tokens overwrite it.
        """
        self._rows = slice(first_row, first_row + positions.shape[0])
        self._positions = positions
        self._span = int(positions.max()) + 1
        return (
            torch.arange(self._span, device=positions.device)[None, None, None]
            <= positions[:, None, :, None]
        )

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [n, K, q, D] at the rows' positions and return views [n, K, span, D]."""
        if layer_idx not in self._kv:
            self._kv[layer_idx] = self._allocate(key_states), self._allocate(value_states)
        rows = torch.arange(self._rows.start, self._rows.stop, device=key_states.device)[:, None]
        keys, values = self._kv[layer_idx]
        for cached, new in ((keys, key_states), (values, value_states)):
            cached[rows, :, self._positions] = new.transpose(1, 2)
        return keys[self._rows, :, : self._span], values[self._rows, :, : self._span]

    def _allocate(self, states: torch.Tensor) -> torch.Tensor:
        _, heads, _, size = states.shape
        shape = (self.num_slots, heads, self.max_tokens, size)
        return torch.zeros(shape, dtype=states.dtype, device=states.device)

    def _tensors(self) -> Iterator[torch.Tensor]:
        for pair in self._kv.values():
            yield from pair

    def move(self, source: int, target: int) -> None:
        """Copy all keys and values of a slot to another slot."""
        for tensor in self._tensors():
            tensor[target].copy_(tensor[source])

    def wipe(self, slot: int) -> None:
        """Set all keys and values of a slot to zero."""
        for tensor in self._tensors():
            tensor[slot] = 0

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * max(1, len(self._kv))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._span
