"""A key-value cache of fixed slots in which every row is at its own position.

Shapes: S slots, n rows in use (always the first n slots), K key-value heads, D head size, q new
tokens of each row. A step writes q keys at each row's positions and reads, through views, the first
`span` positions of the n rows.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache

from pipelines.core.errors import UserError


class SlotCache(Cache):
    """Keys and values as two tensors [S, K, max_tokens, D] for each layer.

    `begin` selects the rows and positions that the next forward writes.
    """

    def __init__(
        self, config: Any, slots: int, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        check_architecture(config, max_tokens)
        super().__init__(layers=[])
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, slots, heads, max_tokens, size)
        self._kv = torch.zeros(shape, dtype=dtype, device=device)
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
        rows = torch.arange(self._rows.start, self._rows.stop, device=key_states.device)[:, None]
        for cached, new in zip(self._kv[layer_idx], (key_states, value_states), strict=True):
            cached[rows, :, self._positions] = new.transpose(1, 2)
        keys, values = self._kv[layer_idx, :, self._rows, :, : self._span]
        return keys, values

    def move(self, source: int, target: int) -> None:
        """Copy all keys and values of a slot to another slot."""
        self._kv[:, :, target].copy_(self._kv[:, :, source])

    def wipe(self, slot: int) -> None:
        """Set all keys and values of a slot to zero."""
        self._kv[:, :, slot] = 0

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * self._kv.shape[0]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._span


def check_architecture(config: Any, max_tokens: int) -> None:
    """Raise UserError for a model with a layer that does not attend to all positions of its row."""
    window = getattr(config, "sliding_window", None)
    kinds = set(
        getattr(config, "layer_types", None)
        or ["sliding_attention" if window else "full_attention"]
    )
    full = {"full_attention"}
    if window and max_tokens <= window:
        full.add("sliding_attention")  # the window never ends before the row does
    if unsupported := kinds - full:
        names = ", ".join(sorted(unsupported))
        advice = f"; set serve.max_model_tokens to at most its window of {window}" if window else ""
        raise UserError(
            f"this engine cannot serve a model with {names} at {max_tokens} tokens{advice}"
        )
