"""What a run of `tests.small_run` must have done, whatever happened to its workers."""

from __future__ import annotations

from collections import Counter

from pipelines.train.track.metrics_log import read_metrics, read_samples
from pipelines.train.worker import WorkerArgs

NUM_STEPS, SAVE_EVERY = 10, 3  # two epochs of ten rows, two rows per step


def losses_of(args: WorkerArgs) -> list[float]:
    """The losses of a run, after checking that every step is logged once and in order."""
    lines = read_metrics(args.folder)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def check_samples(args: WorkerArgs) -> None:
    """Check that each epoch uses every sample exactly once."""
    steps = read_samples(args.folder)
    for epoch in (range(1, 6), range(6, 11)):
        counts = Counter(name for step in epoch for name in steps[step])
        assert set(counts.values()) == {1} and len(counts) == args.prepared.train.num_samples


def unfinished_folders(args: WorkerArgs) -> list[str]:
    """The hidden folders of checkpoints that were never completed."""
    return [path.name for path in args.folder.iterdir() if path.name.startswith(".tmp")]
