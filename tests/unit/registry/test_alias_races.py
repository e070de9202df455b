"""Concurrent moves of an alias: a race has exactly one winner, and a killed writer does no harm."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

from pipelines.registry.errors import AliasMovedError
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from tests.small_adapters import register, write_adapter

NUM_WRITERS, NUM_ROUNDS = 16, 20


def _promote_in_rounds(uri: str, version_id: str, barrier: Any, wins: Any) -> None:
    """In each round all writers expect the same revision; the winner counts itself."""
    registry = Registry(Store(uri))
    for revision in range(NUM_ROUNDS):
        barrier.wait(timeout=30)
        try:
            registry.promote("bot", "production", version_id, revision, reason=version_id)
        except AliasMovedError:
            continue
        with wins.get_lock():
            wins[revision] += 1


def _read_until(uri: str, done: Any, num_reads: Any) -> None:
    """Read all the time; a torn file or an earlier revision makes this process fail."""
    registry, seen = Registry(Store(uri)), 0
    while not done.is_set() or seen < NUM_ROUNDS:
        alias = registry.alias("bot", "production")
        revision = alias.revision if alias else 0
        assert revision >= seen, f"went back from {seen} to {revision}"
        seen = revision
        num_reads.value += 1


def test_of_sixteen_processes_exactly_one_wins_each_revision(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    ids = [
        register(registry, write_adapter(tmp_path / str(i), seed=i)).id for i in range(NUM_WRITERS)
    ]
    fork = multiprocessing.get_context("fork")
    wins, num_reads, done = fork.Array("i", NUM_ROUNDS), fork.Value("i", 0), fork.Event()
    barrier = fork.Barrier(NUM_WRITERS)
    reader = fork.Process(target=_read_until, args=(store.uri, done, num_reads))
    writers = [
        fork.Process(target=_promote_in_rounds, args=(store.uri, i, barrier, wins)) for i in ids
    ]
    for process in (reader, *writers):
        process.start()
    for writer in writers:
        writer.join(60)
    done.set()
    reader.join(60)
    assert [p.exitcode for p in (reader, *writers)] == [0] * (1 + NUM_WRITERS)
    assert wins[:] == [1] * NUM_ROUNDS
    moves = registry.history("bot", "production")
    assert [m.alias.revision for m in moves] == list(range(1, NUM_ROUNDS + 1))
    assert all(m.reason == m.alias.version_id for m in moves)
    assert num_reads.value > NUM_ROUNDS


def _promote_for_ever(uri: str, version_id: str) -> None:
    registry = Registry(Store(uri))
    while True:
        alias = registry.alias("bot", "production")
        registry.promote("bot", "production", version_id, alias.revision if alias else 0)


def test_a_writer_killed_at_any_moment_leaves_a_registry_that_reads_and_moves(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    version_id = register(registry, write_adapter(tmp_path / "a")).id
    fork = multiprocessing.get_context("fork")
    for pause_s in (0.0, 0.003, 0.007, 0.011, 0.016, 0.023):
        writer = fork.Process(target=_promote_for_ever, args=(store.uri, version_id))
        before = len(registry.history("bot", "production"))
        writer.start()
        while len(registry.history("bot", "production")) < before + 2:
            assert writer.is_alive(), "the writer failed"
            time.sleep(0.001)
        time.sleep(pause_s)
        writer.kill()
        writer.join()
        moves = registry.history("bot", "production")
        assert [m.alias.revision for m in moves] == list(range(1, len(moves) + 1))
        registry.promote("bot", "production", version_id, len(moves))
