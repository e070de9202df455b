"""Kills under the real thing: the command line, Ray Train and Ray Data, two workers, each on its own simulated node."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import Store
from pipelines.train.faults.failures import FAILURES_FILE
from pipelines.train.track.metrics_log import read_lines
from tests.chaos.nodes import Nodes, Run, workers_on

EPOCH = 14  # 54 packs, four a step; the last step of an epoch has two
SAVE_EVERY, SHORT, LONG, HANG_S = 5, 30, 84, 60
OPTIONS = {
    "data.row_tokens": 1024,
    "train.global_batch": 4,
    "train.schedule": "constant",
    "train.lr": 3e-4,
    "train.warmup_share": 0,
    "train.save_every": SAVE_EVERY,
    "train.record_samples": "true",
    "resources.cpus_per_worker": 1,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.shutdown()


@pytest.fixture
def nodes(cluster: Nodes, unbroken: Run) -> Iterator[Nodes]:
    """The cluster, without nodes for workers before and after each test."""
    yield cluster
    cluster.lose_all()


def run_in(store: Path, cluster: Nodes, **options: object) -> Run:
    given = OPTIONS | {key.replace("__", "."): value for key, value in options.items()}
    return Run(
        store,
        cluster.address,
        [part for key, value in given.items() for part in ("-s", f"{key}={value}")],
    )


@pytest.fixture(scope="module")
def prepared(cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the prepared dataset."""
    store = tmp_path_factory.mktemp("prepared")
    cluster.add()
    run = run_in(store, cluster)
    run.finish(run.start("prepare"))
    cluster.lose_all()
    return store


@pytest.fixture
def make_run(prepared: Path, cluster: Nodes, tmp_path: Path) -> Callable[..., Run]:
    """A run of so many steps in a store of its own, with the recipe's keys written `section__key`."""

    def make(steps: int, store: Path | None = None, **options: object) -> Run:
        into = store or tmp_path / "store"
        shutil.copytree(prepared, into, dirs_exist_ok=True)
        return run_in(into, cluster, train__max_steps=steps, **options)

    return make


@pytest.fixture(scope="module")
def unbroken(prepared: Path, cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = tmp_path_factory.mktemp("unbroken") / "store"
    shutil.copytree(prepared, store)
    run = run_in(store, cluster, train__max_steps=LONG, resources__workers=2)
    for _ in range(2):
        cluster.add()
    run.finish(run.start())
    cluster.lose_all()
    losses = run.losses()
    assert losses[-1] < 0.5 * losses[0]
    check_epochs(run, LONG)
    return run


def check_epochs(run: Run, steps: int) -> None:
    """Each sample is seen exactly once an epoch."""
    samples = run.samples()
    assert list(samples) == list(range(1, steps + 1))
    whole = sorted(name for step in range(1, EPOCH + 1) for name in samples[step])
    for first in range(1, steps - EPOCH + 2, EPOCH):
        seen = Counter(name for step in range(first, first + EPOCH) for name in samples[step])
        assert set(seen.values()) == {1} and sorted(seen) == whole


def check_like(run: Run, unbroken: Run, steps: int, tolerance: float = 1e-6) -> None:
    """The run took the unbroken one's way: losses, samples, one artifact, nothing left lying about."""
    assert run.losses() == pytest.approx(unbroken.losses()[:steps], rel=tolerance)
    check_epochs(run, steps)
    assert run.samples() == {
        step: names for step, names in unbroken.samples().items() if step <= steps
    }
    assert len(list(run.store.glob("trained/*/manifest.json"))) == 1
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".tmp")]
    run.check_checkpoints()


def failures(run: Run) -> list[dict[str, Any]]:
    return read_lines(run.folder / FAILURES_FILE)


def test_killed_and_stopped_workers_a_killed_driver_and_a_damaged_snapshot(
    make_run: Callable[..., Run],
    nodes: Nodes,
    unbroken: Run,
    record_property: Callable[[str, object], None],
) -> None:
    run = make_run(SHORT, resources__workers=2, train__max_failures=2, train__hang_timeout_s=HANG_S)
    both = nodes.add(), nodes.add()
    driver = run.start()
    run.wait_for(lambda: run.step >= 7)
    workers_on(both[0])[0].kill()
    record_property(
        "worker killed: seconds to the first new step", run.seconds_until_started_again()
    )
    run.wait_for(lambda: run.step >= 11)
    os.kill(workers_on(both[1])[0].pid, signal.SIGSTOP)
    seconds = run.seconds_until_started_again()
    record_property(
        f"worker stopped, hang_timeout_s={HANG_S}: seconds to the first new step", seconds
    )
    assert ["failed" in news for news in failures(run)] == [True, True]
    run.wait_for(lambda: run.step >= 13)
    driver.kill()
    driver.wait()
    assert run.said().count("train: failed: worker") == 2, run.said()
    run.wait_for(lambda: not workers_on(both[0]) and not workers_on(both[1]))
    snapshot = (
        run.folder / "checkpoint_manager_snapshot.json"
    )  # Ray has not written it yet where the kills came fast
    whole = (
        snapshot.read_bytes()
        if snapshot.exists()
        else b'{"ray_version": "2.60.0", "checkpoint_results": []}'
    )
    snapshot.write_bytes(whole[: len(whole) // 2])
    said = run.finish(run.start())
    assert re.search(rf"goes on from step 1[05] of {SHORT}", said), said
    check_like(run, unbroken, SHORT)
    assert len(run.redone()) == 3 and max(run.redone()) <= SAVE_EVERY
    assert "found" in run.finish(run.start())


def test_a_node_that_is_reclaimed_and_a_node_that_is_lost(
    make_run: Callable[..., Run],
    nodes: Nodes,
    unbroken: Run,
    record_property: Callable[[str, object], None],
) -> None:
    """The notice loses no step and, one failure being allowed, does not count as one; the loss redoes a few steps."""
    run = make_run(LONG, resources__workers=2, train__max_failures=1)
    first, second = nodes.add(), nodes.add()
    driver = run.start()
    run.wait_for(lambda: run.step >= 3)
    nodes.add()
    nodes.drain(first, 20)
    seconds = run.seconds_until_started_again()
    record_property(
        "node drained with 20 s notice: seconds from notice to the first step elsewhere", seconds
    )
    assert run.redone() == [0] and not workers_on(first)
    assert [len(news["announced"]) for news in failures(run)] == [1]
    nodes.lose(first)
    run.wait_for(lambda: run.step >= run.spans()[1][0] + 2)
    nodes.lose(second)
    nodes.add()
    record_property(
        "node lost, replaced: seconds to the first new step", run.seconds_until_started_again()
    )
    said = run.finish(driver)
    assert (
        said.count("does not count as a failure") == 1 and said.count("train: failed: worker") == 1
    ), said
    check_like(run, unbroken, LONG)
    assert len(run.redone()) == 2 and run.redone()[1] <= SAVE_EVERY


def test_two_workers_one_and_two_again(
    make_run: Callable[..., Run],
    nodes: Nodes,
    unbroken: Run,
    record_property: Callable[[str, object], None],
) -> None:
    """An elastic run loses a node that nobody replaces, and gets another one later."""
    run = make_run(
        LONG, resources__workers="[1,2]", resources__resize_every_s=15, train__max_failures=1
    )
    first, second = nodes.add(), nodes.add()
    driver = run.start()
    run.wait_for(lambda: run.step >= 7)
    nodes.lose(first)
    record_property(
        "node lost, not replaced: seconds to the first new step", run.seconds_until_started_again()
    )
    third = nodes.add()
    record_property(
        "node added: seconds to the first step with it", run.seconds_until_started_again()
    )
    assert len(workers_on(second)) == len(workers_on(third)) == 1
    run.finish(driver)
    check_like(run, unbroken, LONG, 1e-5)
    assert len(run.redone()) == 2 and max(run.redone()) <= SAVE_EVERY


def test_a_disk_that_fills_up_and_is_freed(
    make_run: Callable[..., Run], nodes: Nodes, unbroken: Run, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    for _ in range(2):
        nodes.add()
    try:
        run = make_run(SHORT, disk / "store", resources__workers=2)
        driver = run.start()
        run.wait_for(lambda: run.step >= 6)
        ballast = disk / "ballast"
        with pytest.raises(OSError), open(ballast, "wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 4096)
        said = run.finish(driver, code=2)
        line = said.strip().splitlines()[-1]
        assert line.startswith("loraforge: ") and str(run.store) in line
        assert re.search(r"\d+ MiB free.* (wants \d+ MiB|\d+ MiB wanted)", line), line
        own = [
            line for line in said.splitlines() if not re.match(r"\S*\(\w+ pid=\d+", line)
        ]  # the rest are Ray's logs
        assert not [line for line in own if line.startswith("Traceback")], own
        assert not failures(run)
        checkpoints = Store(run.store).list("runs/" + run.folder.name)
        last = max(artifact.metadata["step"] for artifact in checkpoints)
        ballast.unlink()
        assert f"goes on from step {last} of" in run.finish(run.start())
        check_like(run, unbroken, SHORT)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
