"""Checks of the loss masks that tasks report for the samples of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from pipelines.core.errors import UserError

# Names in the manifest, and the columns with the numbers of checked and of failed items.
_CHECKS = {
    "stop_trained": ("num_loss_turns", "num_missing_stop"),
    "other_turns_masked": ("num_context_spans", "num_leaked_tokens"),
    "texts_beside_calls": ("num_call_texts", "num_unrendered_call_texts"),
    "prefix_matches": ("num_prompts", "num_prompts_differ"),
    "thoughts_given": ("num_prompts", "num_no_thought"),
    "answers_in_place": ("num_prompts", "num_left_out"),
    "thoughts_shown": ("num_thoughts", "num_dropped_thoughts"),
}
NAMES = tuple(_CHECKS)


class MaskChecks:
    """Counts `NAME_checked` and `NAME_failed` of every check over all samples.

    `first_rows` has the file and line of the first sample that fails a check.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first_rows: dict[str, str] = {}

    def add(self, table: pa.Table, origin: Callable[[int, int], str]) -> None:
        """Count the rows of a table of tokenized_table.SCHEMA.

        Raises UserError for a label position in a turn that is no answer; `origin` names the file
        and line of a chunk's row.
        """
        for name, (checked, failed) in _CHECKS.items():
            self.counts[f"{name}_checked"] += _sum(table[checked])
            self.counts[f"{name}_failed"] += _sum(table[failed])
        for name in NAMES:
            if self.counts[f"{name}_failed"] and name not in self.first_rows:
                number = int(np.argmax(failing(table)[name]))
                chunk, row = (table[column][number].as_py() for column in ("chunk", "row"))
                self.first_rows[name] = origin(chunk, row)
        if first := self.first_rows.get("other_turns_masked"):
            num_tokens = next(filter(None, table["num_leaked_tokens"].to_pylist()))
            raise UserError(
                f"data.sources: {first}: the loss would include "
                f"{num_tokens} tokens of its system, user or tool turns; the chat "
                "template of model.base marks text of these turns as answers: fix the template"
            )


def failing(table: pa.Table) -> Mapping[str, np.ndarray]:
    """For each check of NAMES the rows of a table that fail it, bool [N]."""
    return {
        name: table[column].fill_null(0).to_numpy() > 0 for name, (_, column) in _CHECKS.items()
    }


def _sum(column: pa.ChunkedArray) -> int:
    return int(column.drop_null().to_numpy().sum())
