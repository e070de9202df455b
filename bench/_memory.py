"""Memory of a process and its descendants, sampled while something runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def peak_memory() -> Iterator[dict[str, list[int]]]:
    """Samples memory twice per second: of this process ("driver"), and with descendants ("all")."""
    peaks: dict[str, list[int]] = {"driver": [0], "all": [0]}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            sizes = {pid: _pss_bytes(pid) for pid in _descendants(os.getpid())}
            peaks["all"].append(sum(sizes.values()))
            peaks["driver"].append(sizes.get(os.getpid(), 0))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _descendants(root: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):  # the process has ended meanwhile
            continue
    family = {root}
    while children := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= children
    return family


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
