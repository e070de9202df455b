"""A run's metrics.jsonl and its record of samples, written and read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.train.json_lines import read_json_lines
from pipelines.train.track.trackers import open_trackers

_TAIL_BYTES = 4096  # enough for several lines


class MetricsLog:
    """Appends one line for each step to `folder/metrics.jsonl` and sends it to the trackers.

    A run that resumes from `first_step` drops the lines of later steps, which it does again.
    `run_info` has the run's "run_id" and "recipe". Raises UserError for a tracker that cannot be
    used.
    """

    def __init__(
        self, folder: Path, first_step: int, trackers: Sequence[str], run_info: Mapping[str, Any]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        earlier = [line for line in read_metrics(folder) if line["step"] <= first_step]
        replacement = self._path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(line) + "\n" for line in earlier))
        os.replace(replacement, self._path)
        self._stream = open(self._path, "a", buffering=1)  # noqa: SIM115  (until close)
        self._trackers = open_trackers(trackers, folder, run_info)
        for line in earlier:
            values = {name: value for name, value in line.items() if name != "step"}
            self._send(line["step"], values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics after step 1, 2, ...; a number that is not finite is written as null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._stream.write(json.dumps({"step": step, **finite}) + "\n")
        self._send(step, finite)

    def _send(self, step: int, values: Mapping[str, float | None]) -> None:
        numbers = {name: value for name, value in values.items() if value is not None}
        for tracker in self._trackers:
            if step > tracker.last_step:
                tracker.write(step, numbers)

    def close(self, finished: bool = True) -> None:
        """End the log; `finished` is False if the run broke off."""
        self._stream.close()
        for tracker in self._trackers:
            tracker.close(finished)


class SampleLog:
    """Records, for audits, the samples that this rank trained on in each step.

    Writes `folder/samples/*.jsonl`, one file for each rank and start of the run; `started_at` is
    the same on all ranks. A resumed run does the steps after its checkpoint again, so of two
    records of a step the later start's is valid.
    """

    def __init__(self, folder: Path, started_at: float, rank: int) -> None:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        path = folder / "samples" / f"{started_at:.6f}-{rank}.jsonl"
        self._stream = open(path, "a", buffering=1)  # noqa: SIM115  (as long as the run)

    def write(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record the samples of this rank's `rows` of a step."""
        samples = [str(sample) for row in rows for sample in row["sample_ids"]]
        self._stream.write(json.dumps({"step": step, "samples": samples}) + "\n")


def read_samples(folder: Path) -> dict[int, list[str]]:
    """The samples of every step over all ranks; steps that were done again count once."""
    steps: dict[int, tuple[str, list[str]]] = {}
    for path in sorted((folder / "samples").glob("*.jsonl")):
        start = path.name.rpartition("-")[0]
        for line in read_json_lines(path):
            previous_start, samples = steps.get(line["step"], ("", []))
            of_this_start = samples if previous_start == start else []
            steps[line["step"]] = (start, [*of_this_start, *line["samples"]])
    return {step: samples for step, (_, samples) in sorted(steps.items())}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's metrics.jsonl so far."""
    return read_json_lines(folder / "metrics.jsonl")


def last_metrics(folder: Path) -> dict[str, Any] | None:
    """The last complete line of a run's metrics.jsonl so far, read from the end of the file."""
    try:
        with open(folder / "metrics.jsonl", "rb") as stream:
            stream.seek(-min(_TAIL_BYTES, stream.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if lines else None
