"""The checks that each sample fails, as the label `fault` of packed samples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.data import mask_checks
from pipelines.data.row_facts import TYPED_ENDS, TYPED_TEMPLATES, has_fact

FAULTS = (*mask_checks.NAMES, TYPED_ENDS, TYPED_TEMPLATES)

# N: rows


def fault_codes(table: pa.Table) -> np.ndarray:
    """For each row of a table of tokenized_table.SCHEMA a number with bit i set if the row has the
    fault FAULTS[i], int32 [N].
    """
    failing = {
        **mask_checks.failing(table),
        **{kind: has_fact(table, kind) for kind in (TYPED_ENDS, TYPED_TEMPLATES)},
    }
    codes = np.zeros(len(table), np.int32)
    for bit, name in enumerate(FAULTS):
        codes |= failing[name].astype(np.int32) << bit
    return codes


def fault_labels(codes: np.ndarray) -> pa.DictionaryArray:
    """The names of each code's faults, separated by spaces."""
    different, numbers = np.unique(codes, return_inverse=True)
    texts = [
        " ".join(name for bit, name in enumerate(FAULTS) if code >> bit & 1)
        for code in different.tolist()
    ]
    return pa.DictionaryArray.from_arrays(
        pa.array(numbers.astype(np.int32)), pa.array(texts, pa.string())
    )
