"""Metrics of a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.train.track.trackers import open_trackers

_TAIL_BYTES = 4096  # several lines


class MetricsLog:
    """Appends a line a step to `folder/metrics.jsonl`. Lines after `first_step` of an interrupted run go away."""

    def __init__(
        self, folder: Path, first_step: int, trackers: Sequence[str], about: Mapping[str, Any]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        earlier = [line for line in read_metrics(folder) if line["step"] <= first_step]
        replacement = self._path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(line) + "\n" for line in earlier))
        os.replace(replacement, self._path)
        self._stream = open(self._path, "a", buffering=1)  # noqa: SIM115  (lives as long as the run)
        self._trackers = open_trackers(trackers, folder, about)
        for line in earlier:
            self._tell(
                line["step"], {name: value for name, value in line.items() if name != "step"}
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """`values` of steps 1, 2, ...; a number that is not finite is written as null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._stream.write(json.dumps({"step": step, **finite}) + "\n")
        self._tell(step, finite)

    def _tell(self, step: int, values: Mapping[str, float | None]) -> None:
        for tracker in self._trackers:
            if step > tracker.held:
                tracker.write(
                    step, {name: value for name, value in values.items() if value is not None}
                )

    def close(self, finished: bool = True) -> None:
        """The run has ended, or broke off when not `finished`."""
        self._stream.close()
        for tracker in self._trackers:
            tracker.close(finished)


class SampleLog:
    """Writes down which samples this rank saw in each step, for proofs and audits: `folder/samples/*.jsonl`.

    A file a rank and start of the run (`started_at`, the same on all ranks); of two records of a step the later start's
    counts, because a resumed run does the steps after its checkpoint again.
    """

    def __init__(self, folder: Path, started_at: float, rank: int) -> None:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        self._stream = open(folder / "samples" / f"{started_at:.6f}-{rank}.jsonl", "a", buffering=1)  # noqa: SIM115

    def write(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """These rows were this rank's in `step`."""
        samples = [str(sample) for row in rows for sample in row["sample_ids"]]
        self._stream.write(json.dumps({"step": step, "samples": samples}) + "\n")


def read_samples(folder: Path) -> dict[int, list[str]]:
    """The samples of every step over all ranks, those of abandoned steps left out."""
    steps: dict[int, tuple[str, list[str]]] = {}
    for path in sorted((folder / "samples").glob("*.jsonl")):
        start = path.name.rpartition("-")[0]
        for line in read_lines(path):
            held = steps.get(line["step"])
            steps[line["step"]] = (
                start,
                [*(held[1] if held and held[0] == start else ()), *line["samples"]],
            )
    return {step: samples for step, (_, samples) in sorted(steps.items())}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl so far; a last line still being written is left out."""
    return read_lines(folder / "metrics.jsonl")


def last_metrics(folder: Path) -> dict[str, Any] | None:
    """The last whole line of a run's metrics.jsonl so far, read from the file's end."""
    try:
        with open(folder / "metrics.jsonl", "rb") as stream:
            stream.seek(-min(_TAIL_BYTES, stream.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if lines else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; none where there is no file, and not one still being written."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
