"""What the training loop does about a loss or gradient that is not finite."""

from __future__ import annotations

import pytest

from pipelines.config.schema import TrainConfig
from pipelines.core.errors import UserError
from pipelines.train.loop import MAX_SKIPS, check_finite


def test_skipped_steps_in_a_row_are_counted_and_the_advice_fits_the_recipe() -> None:
    """The message never advises the value of train.nonfinite that is already set."""
    bad, good = {"loss": 1.0, "grad_norm": float("inf")}, {"loss": 1.0, "grad_norm": 1.0}
    stop, skip = TrainConfig(nonfinite="stop"), TrainConfig(nonfinite="skip")
    with pytest.raises(UserError, match=r"step 7: .*set train.nonfinite=skip"):
        check_finite(stop, 7, bad, False, 0)
    assert check_finite(stop, 7, bad, True, 0) == 0  # fp16 lowered its loss scale
    assert check_finite(skip, 7, bad, False, 3) == 4
    assert check_finite(skip, 8, good, False, 4) == 0
    after = rf"after {MAX_SKIPS - 1} skipped steps in a row.*or train.clip_norm"
    with pytest.raises(UserError, match=after):
        check_finite(skip, 7, bad, False, MAX_SKIPS - 1)
