"""Which workers of a run ended early or will, and what was damaged: written by Ray Train's controller and rank 0, read by who follows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.train.track.metrics_log import read_lines

FAILURES_FILE = "failures.jsonl"
_CAUSE, _REASON_CHARS = "The actor is dead because", 240


class FailureLog:
    """Appends to `folder/failures.jsonl`, each piece of news once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FAILURES_FILE
        self._last: Mapping[str, object] = {}

    def failed(self, reasons: Mapping[int, str]) -> None:
        """Workers ended early; `reasons` by rank."""
        self._write({"failed": {str(rank): reason for rank, reason in sorted(reasons.items())}})

    def announced(self, ranks: Sequence[int], seconds_left: float) -> None:
        """The nodes of these ranks will be taken away."""
        self._write(
            {
                "announced": sorted(ranks),
                "in_s": None if math.isinf(seconds_left) else round(seconds_left),
            }
        )

    def damaged(self, line: str) -> None:
        """A checkpoint is left out, because it is not what was written."""
        self._write({"damaged": line})

    def _write(self, news: Mapping[str, object]) -> None:
        if news != self._last:
            self._last = news
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a") as stream:
                stream.write(json.dumps(news) + "\n")


def read_failures(folder: Path) -> list[str]:
    """The failures of a run so far, a line each, oldest first."""
    return [_describe(news) for news in read_lines(folder / FAILURES_FILE)]


def _describe(news: Mapping[str, Any]) -> str:
    if "failed" in news:
        return f"failed: {'; '.join(f'worker {rank}: {reason}' for rank, reason in news['failed'].items())}"
    if "damaged" in news:
        return f"checkpoint damaged, {news['damaged']}"
    who, when = (
        ", ".join(map(str, news["announced"])),
        "soon" if news["in_s"] is None else f"in {news['in_s']} s",
    )
    return f"the node of worker {who} will be taken away {when}; this does not count as a failure"


def was_preempted(error: Exception) -> bool:
    """Whether Ray says that a worker ended because its node was taken away."""
    return bool(getattr(_plain(error), "preempted", False))


def reason_of(error: Exception) -> str:
    """What ended a worker, in a line."""
    plain = _plain(error)
    text = " ".join(str(plain).split())
    text = text[max(0, text.find(_CAUSE)) :]
    return f"{type(plain).__name__}: {text[:_REASON_CHARS]}{'...' if len(text) > _REASON_CHARS else ''}"


def _plain(error: Exception) -> Exception:
    return getattr(error, "health_check_failure", error)
