"""Checks of this machine: Python, packages, CPU, memory, GPU, Ray and disks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from jobs.cluster.ray import OBJECT_STORE_BYTES

OK, WARNING, BLOCKER = "ok", "warning", "blocker"
_STYLES = {OK: "green", WARNING: "yellow", BLOCKER: "bold red"}
_MIN_FREE_BYTES, _GOOD_FREE_BYTES = 1 << 30, 10 << 30
_MIN_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Check:
    """One check: what it saw, the verdict, and for any verdict but `ok` what to do."""

    name: str
    observed: str
    verdict: str = OK
    advice: str = ""


def check_machine(store: Path) -> list[Check]:
    """Check Python, packages, CPU, memory, GPU, Ray's token and the disks. Changes nothing."""
    return [
        _python(),
        *_packages(),
        _cores(),
        _memory(),
        _gpu(),
        _auth(),
        _disk(store),
        _shared_memory(),
    ]


def checks_table(checks: list[Check]) -> Table:
    """The checks as a table, the verdicts coloured."""
    table = Table(title="loraforge doctor", title_justify="left")
    for column in ("check", "found", "verdict", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        table.add_row(check.name, Text(check.observed), verdict, Text(check.advice))
    return table


def _python() -> Check:
    tested = ("3.11", "3.12", "3.13")
    if not platform.python_version().startswith(tested):
        return Check("python", platform.python_version(), WARNING, f"tested: {', '.join(tested)}")
    return Check("python", platform.python_version())


def _packages() -> Iterator[Check]:
    """One line for each package that is missing or outside its range, one for all others."""
    try:
        lines = importlib.metadata.requires("loraforge") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            "packages", "loraforge is not installed", BLOCKER, "pip install -c constraints.txt -e ."
        )
        return
    fitting = []
    for line in lines:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not wanted.specifier.contains(version, prereleases=True):
            yield Check(
                wanted.name, version, BLOCKER, f"pip install '{wanted.name}{wanted.specifier}'"
            )
        else:
            fitting.append(f"{wanted.name} {version}")
    yield Check("packages", ", ".join(fitting))


def _cores() -> Check:
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if count < 2:
        return Check(
            "cpu", f"{count} core", WARNING, "two training workers share it: expect twice the time"
        )
    return Check("cpu", f"{count} cores")


def _memory() -> Check:
    size = psutil.virtual_memory().available
    if size < _MIN_MEMORY_BYTES:
        return Check(
            "memory",
            _gib(size) + " available",
            WARNING,
            f"{_gib(_MIN_MEMORY_BYTES)} keep the demo from swapping",
        )
    return Check("memory", _gib(size) + " available")


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("gpu", f"{', '.join(names)} (torch {torch.__version__})")
    if Path("/dev/nvidiactl").exists():
        advice = (
            f"torch {torch.__version__} cannot use it: install the torch build that fits the driver"
        )
        return Check("gpu", "an NVIDIA driver, no device for torch", WARNING, advice)
    return Check("gpu", "none; recipes run on CPU")


def _auth() -> Check:
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode == "disabled":
        advice = (
            "unset RAY_AUTH_MODE: without a token, anyone who reaches the dashboard's port can run "
            "code here"
        )
        return Check("ray authentication", "RAY_AUTH_MODE=disabled", WARNING, advice)
    path, default = os.environ.get("RAY_AUTH_TOKEN_PATH"), Path("~/.ray/auth_token").expanduser()
    if os.environ.get("RAY_AUTH_TOKEN"):
        token = "RAY_AUTH_TOKEN"
    elif path and not Path(path).expanduser().is_file():
        return Check(
            "ray authentication",
            f"RAY_AUTH_TOKEN_PATH={path}",
            BLOCKER,
            "no such file: set it or unset it",
        )
    else:
        token = path or (str(default) if default.is_file() else "made by the first local run")
    return Check("ray authentication", f"mode {mode or 'default'}, token: {token}")


def _disk(store: Path) -> Check:
    here = store.absolute()
    while not here.exists():
        here = here.parent
    free = shutil.disk_usage(here).free
    if not os.access(here, os.W_OK):
        return Check("disk", f"{here} is read-only", BLOCKER, "choose another folder with --store")
    if free < _GOOD_FREE_BYTES:
        verdict = BLOCKER if free < _MIN_FREE_BYTES else WARNING
        return Check(
            "disk", f"{_gib(free)} free at {here}", verdict, "free space or choose another --store"
        )
    return Check("disk", f"{_gib(free)} free at {here}")


def _shared_memory() -> Check:
    if not Path("/dev/shm").is_dir():
        return Check(
            "shared memory", "no /dev/shm", WARNING, "Ray keeps its objects in a slower place"
        )
    free = shutil.disk_usage("/dev/shm").free
    if free < OBJECT_STORE_BYTES:
        return Check(
            "shared memory", f"{_gib(free)} in /dev/shm", WARNING, "in Docker: --shm-size=1g"
        )
    return Check("shared memory", f"{_gib(free)} in /dev/shm")


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
