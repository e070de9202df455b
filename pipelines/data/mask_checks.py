"""Checks of the loss masks that tasks report for the samples of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pyarrow as pa

from pipelines.core.errors import UserError

# Names in the manifest, and the columns with the numbers of checked and of failed items.
_CHECKS = {
    "stop_trained": ("num_loss_turns", "num_missing_stop"),
    "other_turns_masked": ("num_context_spans", "num_leaked_tokens"),
    "texts_beside_calls": ("num_call_texts", "num_unrendered_call_texts"),
}


class MaskChecks:
    """Counts `NAME_checked` and `NAME_failed` of every check over all samples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, table: pa.Table, origin: Callable[[int, int], str]) -> None:
        """Count the rows of a table of tokenized_table.SCHEMA.

        Raises UserError for a label position in a turn that is no answer; `origin` names the file
        and line of a chunk's row.
        """
        for name, (checked, failed) in _CHECKS.items():
            self.counts[f"{name}_checked"] += _sum(table[checked])
            self.counts[f"{name}_failed"] += _sum(table[failed])
        matches = table["prefix_matches"].drop_null()
        self.counts["prefix_matches_checked"] += len(matches)
        self.counts["prefix_matches_failed"] += len(matches) - _sum(matches)
        if self.counts["other_turns_masked_failed"]:
            rows = table.select(["chunk", "row", "num_leaked_tokens"]).to_pylist()
            row = next(row for row in rows if row["num_leaked_tokens"])
            raise UserError(
                f"data.sources: {origin(row['chunk'], row['row'])}: the loss would include "
                f"{row['num_leaked_tokens']} tokens of its system, user or tool turns; the chat "
                "template of model.base marks text of these turns as answers: fix the template"
            )


def _sum(column: pa.ChunkedArray) -> int:
    return int(column.drop_null().to_numpy().sum())
