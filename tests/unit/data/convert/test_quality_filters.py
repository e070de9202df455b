"""Quality filters keep rows out, and invalid expressions are refused."""

from __future__ import annotations

import pytest

from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError
from pipelines.data.convert.quality_filters import QualityFilters
from tests.unit.data.datasets import prepare_rows, rows_of


def test_filters_exclude_rows_and_count_them(pocket_base, store, tmp_path):
    rows = [
        *rows_of(range(10)),
        {"instruction": "a", "output": "x"},
        {"instruction": "b", "output": "la la la la la la"},
    ]
    keep = ["answer_chars >= 2", "unique_word_share > 0.2 and not repeats_prompt"]
    prepared, texts = prepare_rows(pocket_base, store, tmp_path, rows, keep=keep)
    assert prepared.counts["filtered"] == 2 and len(texts) == 10


@pytest.mark.parametrize(
    "rule",
    ["answer_chars >=", "__import__('os')", "answer_char > 1", "'a' * 9", "answer_chars ** 9 > 1"],
)
def test_an_invalid_filter_is_refused_in_one_line(rule):
    with pytest.raises(UserError, match="data.keep: .*answer_chars"):
        QualityFilters([rule])


def test_a_filter_that_divides_by_zero_keeps_no_row():
    assert QualityFilters(["1 / prompt_chars > 0"]).first_failed(
        Conversation((Turn("assistant", "a"),))
    )
