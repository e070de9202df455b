"""The two measures on the pocket base: weighted log-likelihood and exact answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.eval.heldout import HeldoutSet
from pipelines.eval.metrics import is_exact, weighted_nll


def test_the_loss_weighs_each_label_and_never_the_first_token(
    base: Any, heldout: HeldoutSet
) -> None:
    sample = heldout.samples[0]
    nll, weight, count = weighted_nll(base, [sample.input_ids], [sample.loss_weights])
    assert weight == count == np.count_nonzero(sample.loss_weights)
    twice = weighted_nll(base, [sample.input_ids], [sample.loss_weights * 2])
    assert twice == (pytest.approx(2 * nll), 2 * weight, count)
    last = np.zeros_like(sample.loss_weights)
    last[-1] = 1.0
    assert weighted_nll(base, [sample.input_ids], [last])[1:] == (1.0, 1)
    first = np.zeros_like(sample.loss_weights)
    first[0] = 1.0
    assert weighted_nll(base, [sample.input_ids], [first]) == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("generated", "reference", "same"),
    [
        ("a b", " a b\n", True),
        ("a b", "a  b", False),
        ("A", "a", False),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_an_answer_is_exact_up_to_whitespace_at_its_ends(
    generated: str, reference: str, same: bool
) -> None:
    assert is_exact(generated, reference) is same
