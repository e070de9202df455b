"""Kills under the real thing: the command line, Ray Train and Ray Data, two workers, each on its own simulated node."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import Store
from pipelines.train.failures import FAILURES_FILE
from pipelines.train.metrics import read_lines
from tests.chaos.nodes import Nodes, Run, workers_on

SAVE_EVERY, EPOCH, HANG_S = 5, 4, 60  # 27 packs, eight a step: four steps an epoch, of which the last has three packs
OPTIONS = ["data.row_tokens=2048", "train.global_batch=8", "train.schedule=constant", "train.lr=1e-3"]
OPTIONS += [
    "train.warmup_share=0",
    f"train.save_every={SAVE_EVERY}",
    "train.record_samples=true",
    "resources.cpus_per_worker=1",
]
LONG, SHORT = 30, 16

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def prepared(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the prepared dataset."""
    store = tmp_path_factory.mktemp("prepared")
    run = Run(store, nodes.address, ["-s", OPTIONS[0]])
    node = nodes.add()
    run.finish(run.start("prepare"))
    nodes.lose(node)
    return store


@pytest.fixture
def make_run(prepared: Path, nodes: Nodes, tmp_path: Path) -> Callable[..., Run]:
    def make(steps: int, *options: str, store: Path | None = None) -> Run:
        into = store or tmp_path / "store"
        shutil.copytree(prepared, into, dirs_exist_ok=True)
        given = [*OPTIONS, f"train.max_steps={steps}", *options]
        return Run(into, nodes.address, [part for option in given for part in ("-s", option)])

    return make


@pytest.fixture(scope="module")
def unbroken(prepared: Path, nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = tmp_path_factory.mktemp("unbroken") / "store"
    shutil.copytree(prepared, store)
    given = [*OPTIONS, f"train.max_steps={LONG}", "resources.workers=2"]
    run = Run(store, nodes.address, [part for option in given for part in ("-s", option)])
    both = nodes.add(), nodes.add()
    run.finish(run.start())
    for node in both:
        nodes.lose(node)
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
    assert run.samples() == {step: names for step, names in unbroken.samples().items() if step <= steps}
    assert len(list(run.store.glob("trained/*/manifest.json"))) == 1
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".tmp")]
    run.check_checkpoints()


def failures(run: Run) -> list[dict[str, Any]]:
    return read_lines(run.folder / FAILURES_FILE)


def test_killed_and_stopped_workers_a_killed_driver_and_a_damaged_snapshot(
    make_run: Callable[..., Run], nodes: Nodes, unbroken: Run, record_property: Callable[[str, object], None]
) -> None:
    run = make_run(SHORT, "resources.workers=2", "train.max_failures=2", f"train.hang_timeout_s={HANG_S}")
    both = nodes.add(), nodes.add()
    driver = run.start()
    run.wait_for(lambda: run.step >= 7)
    workers_on(both[0])[0].kill()
    record_property("worker killed: seconds to the first new step", run.seconds_until_started_again())
    run.wait_for(lambda: run.step >= 11)
    os.kill(workers_on(both[1])[0].pid, signal.SIGSTOP)
    seconds = run.seconds_until_started_again()
    record_property(f"worker stopped, hang_timeout_s={HANG_S}: seconds to the first new step", seconds)
    assert [len(failure["workers"]) > 0 for failure in failures(run)] == [True, True]
    run.wait_for(lambda: run.step >= 13)
    driver.kill()
    said, _ = driver.communicate()
    assert said.count("train: worker failed") == 2
    run.wait_for(lambda: not workers_on(both[0]) and not workers_on(both[1]))
    snapshot = run.folder / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[: snapshot.stat().st_size // 2])
    said = run.finish(run.start())
    assert f"goes on from step 10 of {SHORT}" in said
    check_like(run, unbroken, SHORT)
    assert len(run.redone()) == 3 and max(run.redone()) <= SAVE_EVERY
    assert "found" in run.finish(run.start())
    for node in both:
        nodes.lose(node)


def test_a_node_that_is_reclaimed_and_a_node_that_is_lost(
    make_run: Callable[..., Run], nodes: Nodes, unbroken: Run, record_property: Callable[[str, object], None]
) -> None:
    """The notice loses no step and, one failure being allowed, does not count as one; the loss redoes a few steps."""
    run = make_run(SHORT, "resources.workers=2", "train.max_failures=1")
    first, second = nodes.add(), nodes.add()
    driver = run.start()
    run.wait_for(lambda: run.step >= 3)
    third = nodes.add()
    nodes.drain(first, 20)
    seconds = run.seconds_until_started_again()
    record_property("node drained with 20 s notice: seconds from notice to the first step elsewhere", seconds)
    assert run.redone() == [0] and not workers_on(first)
    assert [failure["announced"] for failure in failures(run)] == [True]
    nodes.lose(first)
    run.wait_for(lambda: run.step >= run.spans()[1][0] + 2)
    nodes.lose(second)
    fourth = nodes.add()
    record_property("node lost, replaced: seconds to the first new step", run.seconds_until_started_again())
    said = run.finish(driver)
    assert said.count("not counted as a failure") == 1 and said.count("train: worker failed") == 1
    check_like(run, unbroken, SHORT)
    assert len(run.redone()) == 2 and run.redone()[1] <= SAVE_EVERY
    for node in (third, fourth):
        nodes.lose(node)


def test_two_workers_one_and_two_again(
    make_run: Callable[..., Run], nodes: Nodes, unbroken: Run, record_property: Callable[[str, object], None]
) -> None:
    """An elastic run loses a node that nobody replaces, and gets another one later."""
    run = make_run(LONG, "resources.workers=[1,2]", "train.max_failures=1")
    first, second = nodes.add(), nodes.add()
    driver = run.start()
    run.wait_for(lambda: run.step >= 7)
    nodes.lose(first)
    record_property("node lost, not replaced: seconds to the first new step", run.seconds_until_started_again())
    third = nodes.add()
    record_property("node added: seconds to the first step with it", run.seconds_until_started_again())
    assert len(workers_on(second)) == len(workers_on(third)) == 1
    run.finish(driver)
    check_like(run, unbroken, LONG, 1e-5)
    assert len(run.redone()) == 2 and max(run.redone()) <= SAVE_EVERY
    for node in (second, third):
        nodes.lose(node)


def test_a_disk_that_fills_up_and_is_freed(
    make_run: Callable[..., Run], nodes: Nodes, unbroken: Run, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    both = nodes.add(), nodes.add()
    try:
        run = make_run(SHORT, "resources.workers=2", store=disk / "store")
        driver = run.start()
        run.wait_for(lambda: run.step >= 6)
        ballast = disk / "ballast"
        with pytest.raises(OSError), open(ballast, "wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 4096)
        said = run.finish(driver, code=2)
        line = said.strip().splitlines()[-1]
        assert line.startswith("loraforge: ") and str(run.store) in line
        assert "MiB free" in line and "wants" in line or "wanted" in line
        assert "Traceback" not in said and not failures(run)
        checkpoints = Store(run.store).list("runs/" + run.folder.name)
        assert [artifact.facts["step"] for artifact in checkpoints] == [5]
        ballast.unlink()
        assert "goes on from step 5" in run.finish(run.start())
        check_like(run, unbroken, SHORT)
    finally:
        for node in both:
            nodes.lose(node)
        subprocess.run(["umount", "-l", str(disk)], check=True)
