"""What a starter recipe needs to know of a base: its window, its parameters and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.config.shipped import pocket_dir
from pipelines.core.errors import UserError
from pipelines.storage import local_base_dir

if TYPE_CHECKING:
    from pipelines.chat import ChatRenderer

_DEFAULT_WINDOW = 4096


@dataclass(frozen=True)
class BaseSize:
    """A base as far as its configuration shows it.

    `window` is the longest text in tokens. `num_parameters` is 0 if the configuration does not
    show it. `renderer` is None if the tokenizer cannot be read; `note` is the reason then.
    """

    base: str
    window: int = _DEFAULT_WINDOW
    num_parameters: int = 0
    renderer: ChatRenderer | None = None
    note: str = ""

    @property
    def is_pocket(self) -> bool:
        """Whether it is the small base that ships with the package."""
        return self.base == str(pocket_dir() / "model")


def base_size(base: str) -> BaseSize:
    """Read a base's configuration and tokenizer, from a folder or the Hub; never its weights.

    A Hub that cannot be reached only costs the measured lengths. Raises UserError for a folder
    that is not a model.
    """
    from pipelines.chat import ChatRenderer

    try:
        folder = local_base_dir(base, weights=False)
        config = json.loads((folder / "config.json").read_text())
        renderer = ChatRenderer.load(base)
    except UserError as error:
        if base.startswith(("/", ".", "~")) or base.count("/") > 1:
            raise
        return BaseSize(base, note=str(error))
    config = config.get("text_config", config)
    window = int(config.get("max_position_embeddings") or _DEFAULT_WINDOW)
    return BaseSize(base, window, _num_parameters(config), renderer)


def _num_parameters(config: Mapping[str, Any]) -> int:
    """The parameters of a llama-like decoder; 0 for a configuration of another kind."""
    try:
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads") or heads
        head_size = config.get("head_dim") or hidden // heads
        attention = 2 * hidden * head_size * (heads + kv_heads)
        mlp = 3 * hidden * config["intermediate_size"]
        embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
        return layers * (attention + mlp) + embeddings
    except (KeyError, TypeError):
        return 0
