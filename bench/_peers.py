"""The data stage's peer: `datasets.map` with one example per call, then TRL's packing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.chat import TokenizerSpec


@dataclass(frozen=True)
class PeerRates:
    """Tokens per CPU second to ids and masks and to packed Parquet, and the fill of the packs."""

    masked: float
    packed: float
    fill: float


def map_and_pack(
    spec: TokenizerSpec, rows: Sequence[dict[str, Any]], row_tokens: int, path: Path
) -> PeerRates:
    """Render rows of `messages` one by one, pack them best-fit and write them to `path`."""
    import datasets  # pyright: ignore[reportMissingImports]  (the extra bench)
    import tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl.data_utils import pack_dataset  # pyright: ignore[reportMissingImports]

    datasets.disable_progress_bars()
    datasets.disable_caching()
    backend = tokenizers.Tokenizer.from_str(spec.tokenizer_json)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=spec.template, **spec.named_tokens
    )

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        encoded: Any = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        return {name: encoded[name] for name in ("input_ids", "assistant_masks")}

    table = datasets.Dataset.from_list(list(rows))
    start = time.process_time()
    mapped = table.map(tokenize, remove_columns=table.column_names)
    seconds = time.process_time() - start
    count = sum(map(len, mapped["input_ids"]))
    start = time.process_time()
    packed = pack_dataset(mapped, seq_length=row_tokens, strategy="bfd")
    packed.to_parquet(str(path))
    total_seconds = seconds + time.process_time() - start
    fill = sum(map(len, packed["input_ids"])) / (len(packed) * row_tokens)
    return PeerRates(count / seconds, count / total_seconds, fill)
