"""Which workers of a run ended early and why: written by Ray Train's controller, read by whoever follows the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipelines.train.metrics import read_lines

FAILURES_FILE = "failures.jsonl"


class FailureLog:
    """Appends to `folder/failures.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FAILURES_FILE
        self._last: Mapping[str, str] = {}

    def write(self, reasons: Mapping[int, str], announced: bool) -> None:
        """One end of a group of workers, `reasons` by rank; `announced` when it is a preemption's. Said once each."""
        named = {str(rank): reason for rank, reason in sorted(reasons.items())}
        if named == self._last:
            return
        self._last = named
        with open(self._path, "a") as stream:
            stream.write(json.dumps({"announced": announced, "workers": named}) + "\n")


def read_failures(folder: Path) -> list[str]:
    """The failures of a run so far, a line each, oldest first."""
    found = []
    for failure in read_lines(folder / FAILURES_FILE):
        why = "; ".join(f"worker {rank}: {reason}" for rank, reason in failure["workers"].items())
        kind = "a node is taken away, not counted as a failure" if failure["announced"] else "worker failed"
        found.append(f"{kind} ({why})")
    return found
