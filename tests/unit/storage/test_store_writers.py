"""Writers of a local store: artifacts are complete or absent, whenever a writer stops or races."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import Store, verify
from tests.small_artifacts import KEY, hidden_names, write_artifact

fork = multiprocessing.get_context("fork")


def test_an_error_while_writing_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.create_artifact("things", KEY) as draft:
        (draft.path / "half").write_text("half")
        raise ZeroDivisionError
    assert store.names("things") == [] == hidden_names(store)


def _hang_in_the_middle(uri: str, started: Any) -> None:
    with Store(uri).create_artifact("things", KEY) as draft:
        (draft.path / "half").write_text("half")
        started.set()
        time.sleep(60)


def test_a_writer_killed_in_the_middle_leaves_no_final_name_and_the_next_writer_cleans_up(
    store: Store,
) -> None:
    started = fork.Event()
    writer = fork.Process(target=_hang_in_the_middle, args=(store.uri, started))
    writer.start()
    assert started.wait(20)
    drafts = hidden_names(store)
    assert len(drafts) == 1
    write_artifact(store, key="o" * 64)
    assert hidden_names(store) == drafts, "a writer of another key deleted a draft in progress"
    with store.create_artifact("things", KEY) as draft:
        (draft.path / "a").write_text("a")
        assert len(hidden_names(store)) == 2, "a writer of the same key deleted a draft in progress"
    # Damage the artifact, so that the next writer has work to do.
    Path(store.uri, "things", KEY[:12], "a").unlink()
    writer.kill()
    writer.join()
    assert hidden_names(store) == drafts and store.find("things", KEY) is None
    ref = write_artifact(store)
    assert hidden_names(store) == [] and verify(store.local_dir(ref))["digest"] == ref.digest


def _write_for_ever(uri: str, count: Any) -> None:
    store = Store(uri)
    for number in range(10**6):
        write_artifact(store, key=f"{number:012d}" + "k" * 52, num_files=12)
        count.value = number + 1


@pytest.mark.parametrize("pause_s", [0.0, 0.002, 0.005, 0.009, 0.014, 0.02])
def test_a_writer_killed_at_any_moment_leaves_only_complete_artifacts(
    store: Store, pause_s: float
) -> None:
    count = fork.Value("i", 0)
    writer = fork.Process(target=_write_for_ever, args=(store.uri, count))
    writer.start()
    while count.value < 2:
        assert writer.is_alive()
        time.sleep(0.001)
    time.sleep(pause_s)
    writer.kill()
    writer.join()
    artifacts = store.list("things")
    assert len(artifacts) == len(store.names("things")) >= count.value
    for artifact in artifacts:
        verify(store.local_dir(artifact.ref))


def _write_at_once(uri: str, text: str, barrier: Any, digests: Any) -> None:
    store = Store(uri)
    barrier.wait(timeout=30)
    digests.put(write_artifact(store, text=text).digest)


@pytest.mark.parametrize("broken_before", [False, True])
def test_of_many_writers_of_one_key_the_first_wins_and_all_get_its_reference(
    store: Store, broken_before: bool
) -> None:
    for number in range(4):
        part = Store(f"{store.uri}/{number}")
        if broken_before:
            Path(part.uri, "things", KEY[:12]).mkdir(parents=True)
            Path(part.uri, "things", KEY[:12], "half").write_text("half")
        barrier, queue = fork.Barrier(6), fork.Queue()
        writers = [
            fork.Process(target=_write_at_once, args=(part.uri, str(i), barrier, queue))
            for i in range(6)
        ]
        for writer in writers:
            writer.start()
        digests = {queue.get(timeout=30) for _ in writers}
        for writer in writers:
            writer.join(30)
        assert [writer.exitcode for writer in writers] == [0] * 6
        artifact = part.find("things", KEY)
        assert artifact is not None
        assert digests == {artifact.ref.digest} == {verify(part.local_dir(artifact.ref))["digest"]}
        assert hidden_names(part) == [] and part.names("things") == [KEY[:12]]


def test_the_first_complete_artifact_of_a_key_stays(store: Store) -> None:
    first = write_artifact(store, text="first")
    assert write_artifact(store, text="second") == first
    assert (store.local_dir(first) / "deep" / "er" / "0.txt").read_text() == "first"


def _create_in_rounds(uri: str, number: int, barrier: Any, wins: Any) -> None:
    store = Store(uri)
    for round_ in range(20):
        barrier.wait(timeout=30)
        if store.create_file(f"{uri}/deep/folder/{round_}.json", json.dumps([number] * 2000)):
            with wins.get_lock():
                wins[round_] += 1


def test_of_many_processes_that_create_a_file_exactly_one_wins_and_its_file_is_complete(
    store: Store,
) -> None:
    barrier, wins = fork.Barrier(8), fork.Array("i", 20)
    writers = [
        fork.Process(target=_create_in_rounds, args=(store.uri, i, barrier, wins)) for i in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 8 and wins[:] == [1] * 20
    names = sorted(path.name for path in Path(store.uri, "deep/folder").iterdir())
    assert names == sorted(f"{n}.json" for n in range(20))
    for number in range(20):
        text = store.read_text(f"{store.uri}/deep/folder/{number}.json")
        assert len(set(json.loads(text or ""))) == 1
