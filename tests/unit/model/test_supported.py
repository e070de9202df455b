"""Bases that packed training would not compute correctly are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.core.errors import UserError
from pipelines.model.supported import check_base


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sliding_window": 64}, "data.row_tokens=64"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
)
def test_a_base_with_a_short_window_or_scaled_logits_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_base(SimpleNamespace(**settings), 128)
    check_base(
        SimpleNamespace(sliding_window=64, use_sliding_window=False, logits_scaling=1.0), 128
    )
    check_base(SimpleNamespace(sliding_window=4096), 128)


def test_attention_dropout_of_the_base_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    check_base(SimpleNamespace(attention_dropout=0.1), 128)
    assert "attention_dropout=0.1" in caplog.text
