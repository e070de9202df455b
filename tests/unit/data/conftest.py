"""Every dataset that these tests prepare has counts that add up."""

from __future__ import annotations

import pytest

from pipelines.data.assemble import Assembler
from tests.stages import serial_tokenize

_FATES = ("train", "heldout", "rejected", "filtered", "skipped", "too_long", "shortened", "leaked")


@pytest.fixture(autouse=True)
def counts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row and each piece of a shortened row is in a split or listed with one reason."""
    finish = Assembler.finish

    def checked(self: Assembler, folder):
        facts = finish(self, folder)
        counts = facts["counts"]
        num_rejects = sum(
            counts.get(fate, 0) for fate in (*_FATES[2:], "duplicates", "near_duplicates")
        )
        assert (
            counts["read"] + counts["pieces"] == counts["train"] + counts["heldout"] + num_rejects
        ), counts
        with open(folder / "rejects.jsonl") as lines:
            assert sum(1 for _ in lines) == num_rejects
        return facts

    monkeypatch.setattr(Assembler, "finish", checked)


@pytest.fixture
def serially():
    """The tokenizing tasks in this process, without Ray."""
    return serial_tokenize
