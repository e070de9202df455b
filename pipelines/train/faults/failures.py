"""A run's failures.jsonl: workers that ended early, preempted nodes, damaged checkpoints.

Ray Train's controller and rank 0 write it; the command that started the run shows new lines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.core.errors import one_line
from pipelines.train.json_lines import read_json_lines

FAILURES_FILE = "failures.jsonl"
_CAUSE, _MAX_CHARS = "The actor is dead because", 240


class FailureLog:
    """Appends to `folder/failures.jsonl`; an event equal to the last one is not repeated."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FAILURES_FILE
        self._last: Mapping[str, object] = {}

    def failed(self, reasons: Mapping[int, str]) -> None:
        """Workers ended early; `reasons` by rank."""
        self._write({"failed": {str(rank): reason for rank, reason in sorted(reasons.items())}})

    def announced(self, ranks: Sequence[int], seconds_left: float) -> None:
        """The nodes of these ranks will be reclaimed in `seconds_left`, infinite if unknown."""
        in_s = None if math.isinf(seconds_left) else round(seconds_left)
        self._write({"announced": sorted(ranks), "in_s": in_s})

    def damaged(self, description: str) -> None:
        """A checkpoint is skipped because its files differ from the files that were written."""
        self._write({"damaged": description})

    def _write(self, event: Mapping[str, object]) -> None:
        if event != self._last:
            self._last = event
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a") as stream:
                stream.write(json.dumps(event) + "\n")


def read_failures(folder: Path) -> list[str]:
    """The failures of a run so far, one line each, oldest first."""
    return [_describe(event) for event in read_json_lines(folder / FAILURES_FILE)]


def _describe(event: Mapping[str, Any]) -> str:
    if "failed" in event:
        reasons = (f"worker {rank}: {reason}" for rank, reason in event["failed"].items())
        return f"failed: {'; '.join(reasons)}"
    if "damaged" in event:
        return f"checkpoint damaged, {event['damaged']}"
    ranks = ", ".join(map(str, event["announced"]))
    when = "soon" if event["in_s"] is None else f"in {event['in_s']} s"
    return f"the node of worker {ranks} will be taken away {when}; this does not count as a failure"


def was_preempted(error: Exception) -> bool:
    """True if Ray reports that a worker ended because its node was reclaimed."""
    return bool(getattr(_cause(error), "preempted", False))


def reason_of(error: Exception) -> str:
    """The reason why a worker ended, in one line."""
    cause = _cause(error)
    text = one_line(cause)
    text = text[max(0, text.find(_CAUSE)) :]
    shortened = text[:_MAX_CHARS] + ("..." if len(text) > _MAX_CHARS else "")
    return f"{type(cause).__name__}: {shortened}"


def _cause(error: Exception) -> Exception:
    """The worker's own error, out of the wrapper that Ray Train's health check puts around it."""
    return getattr(error, "health_check_failure", error)
